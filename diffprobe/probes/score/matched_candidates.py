"""Matched candidate captions, which differ from a sample's own in one attribute: real captions of the same split, or
captions that are written by exchanging a phrase.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.rng import derive_seed


def matched_candidates(
    captions: Sequence[str],
    attributes: Sequence[Mapping[str, str]],
    families: Sequence[str],
    *,
    name: str,
    equal: Sequence[str],
) -> list[list[int]]:
    """Return for each sample the rows of its matched captions: its own first, then one for each other value of `name`.

    A sample has a matched caption for another value if a sample of the same family has that value, has equal values
    of the attributes in `equal` (or neither has one), and a caption which is the sample's own with the one value
    in place of the other. So what captions state beside the attribute is equal too, whether or not it is an attribute
    (the direction of a drawing, a second skin tone).

    Args:
        captions: main caption of each sample.
        attributes: attributes of each sample.
        families: family of each sample.
        name: the attribute in which candidates differ.
        equal: attributes in which they do not; `name` is ignored.
    Returns: rows in the order of values; an empty list for a sample without a value or without a matched caption.

    >>> captions = ["red cat", "blue cat", "blue cat, asleep", "cat"]
    >>> colours = [{"colour": "red"}, {"colour": "blue"}, {"colour": "blue"}, {}]
    >>> matched_candidates(captions, colours, ["cat"] * 4, name="colour", equal=())
    [[0, 1], [1, 0], [], []]
    """
    others = [other for other in equal if other != name]
    cells = [
        (family, *(sample.get(other) for other in others)) for family, sample in zip(families, attributes, strict=True)
    ]
    row_of: dict[tuple[object, ...], int] = {}
    for row, (cell, sample) in enumerate(zip(cells, attributes, strict=True)):
        row_of.setdefault((*cell, sample.get(name), captions[row]), row)
    values = sorted({sample[name] for sample in attributes if name in sample})
    found: list[list[int]] = []
    for row, (cell, sample) in enumerate(zip(cells, attributes, strict=True)):
        own = sample.get(name)
        matched = []
        for value in values if own is not None else ():
            caption = exchange(captions[row], str(own), value)
            if caption != captions[row] and (other := row_of.get((*cell, value, caption))) is not None:
                matched.append(other)
        found.append([row, *matched] if matched else [])
    return found


def written_candidates(
    captions: Sequence[str],
    attributes: Sequence[Mapping[str, str]],
    keys: Sequence[str],
    *,
    name: str,
    phrase: str,
    most: int,
    seed: int,
) -> list[list[str]]:
    """Return for each sample its own caption and the same with other values of `name` in a phrase.

    Args:
        captions: main caption of each sample.
        attributes: attributes of each sample; the values of `name` among them are the ones that are exchanged.
        keys: key of each sample.
        name: the attribute in which candidates differ.
        phrase: text with one `{}` for the value, as captions state it ("{} clothes").
        most: largest number of candidates; of more values a part is drawn for each sample, by (seed, key).
        seed: of the draw.
    Returns: the own caption first; an empty list for a sample whose caption does not state its value by the phrase.

    >>> captions, colours = ["a cat, red hat", "a red cat"], [{"colour": "red"}, {"colour": "red"}]
    >>> further = {"captions": ["a dog, blue hat"], "attributes": [{"colour": "blue"}]}
    >>> written_candidates([*captions, *further["captions"]], [*colours, *further["attributes"]], "abc",
    ...                    name="colour", phrase="{} hat", most=10, seed=0)
    [['a cat, red hat', 'a cat, blue hat'], [], ['a dog, blue hat', 'a dog, red hat']]
    """
    values = sorted({sample[name] for sample in attributes if name in sample})
    found: list[list[str]] = []
    for caption, sample, key in zip(captions, attributes, keys, strict=True):
        own = sample.get(name)
        stated = phrase.format(own)
        if own is None or exchange(caption, stated, "") == caption:
            found.append([])
            continue
        others = [value for value in values if value != own]
        if len(others) > most - 1:
            generator = torch.Generator().manual_seed(derive_seed("matched candidates", seed, name, key))
            kept = torch.randperm(len(others), generator=generator)[: most - 1].sort().values
            others = [others[place] for place in kept.tolist()]
        written = [exchange(caption, stated, phrase.format(value)) for value in others]
        found.append([caption, *written] if written else [])
    return found


def exchange(caption: str, value: str, other: str) -> str:
    """Return a caption with another value wherever it states the first as whole words.

    >>> exchange("medium skin tone, medium-light hair", "medium", "dark")
    'dark skin tone, medium-light hair'
    """
    return re.sub(rf"(?<![\w-]){re.escape(value)}(?![\w-])", lambda match: other, caption)


def by_count(candidates: Sequence[Sequence[int]]) -> list[tuple[Int[Tensor, " sample"], Int[Tensor, "sample n"]]]:
    """Return the samples of each number of candidates, and their candidates; samples without any are left out.

    >>> [(rows.tolist(), table.tolist()) for rows, table in by_count([[0, 1], [], [2, 0, 1], [3, 1]])]
    [([0, 3], [[0, 1], [3, 1]]), ([2], [[2, 0, 1]])]
    """
    counts = sorted({len(of_sample) for of_sample in candidates} - {0})
    found = []
    for count in counts:
        rows = [row for row, of_sample in enumerate(candidates) if len(of_sample) == count]
        found.append((torch.tensor(rows), torch.tensor([list(candidates[row]) for row in rows])))
    return found
