"""Candidates of `diffprobe score`: their texts or classes, which of them each image is offered, and which is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffprobe.backbones.base import BackboneSpec, ConditionInput
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import Encoded, choice_metric
from diffprobe.evaluation.matched_captions import matched_metric
from diffprobe.evaluation.score_settings import CandidateRule
from diffprobe.probes.score.diffusion_classifier import candidates_of
from diffprobe.probes.score.matched_candidates import written_candidates

CLASS_NAME = "class_name"
"""Stands in `candidates.attribute` for the class of an image, unless the data have an attribute of this name."""

CLASSES = "class_accuracy_"
"""What the metric of a choice between classes begins with."""


@dataclass(frozen=True)
class Question:
    """What a set of images is asked.

    Attributes:
        name: name of the metric.
        rows: the images, as rows of the split.
        values: texts or classes, without repetition.
        candidates: rows of `values` that each image is offered, ascending; -1 fills up.
        right: column of the right one.
        is_square: whether image i has text i and all texts are offered to all images.
        sets: set of each image, where images and texts of a set are asked both ways; else empty. Column 0 is then the
            empty text, a reference that nobody chooses.
        further_ranks: ranks beside the first at which recall is recorded.
    """

    name: str
    rows: Int[Tensor, " sample"]
    values: list[ConditionInput]
    candidates: Int[Tensor, "sample n"]
    right: Int[Tensor, " sample"]
    is_square: bool = False
    sets: tuple[str, ...] = ()
    further_ranks: tuple[int, ...] = ()

    @property
    def eligible(self) -> Bool[Tensor, "sample n"]:
        """Where an image has a candidate that it may choose."""
        found = self.offered
        if self.sets:
            found[:, 0] = False
        return found

    @property
    def offered(self) -> Bool[Tensor, "sample n"]:
        """Where an image has a candidate."""
        return self.candidates >= 0


def questions(
    rule: CandidateRule, encoded: Encoded, *, seed: int, pool: Sequence[tuple[str, str]] = ()
) -> list[Question]:
    """Make the questions of a rule; each attribute of `matched` is one.

    Args:
        rule: what images choose between.
        encoded: the images.
        seed: of what is drawn.
        pool: group and caption of the samples whose captions are the wrong ones; empty for those of `encoded`.
    Raises: EmptyClass if there are too few groups, classes or images; ConfigError for classes that are not numbers.
    """
    if rule.kind == "classes":
        return [_classes(rule, encoded)]
    if rule.kind == "retrieval":
        return [_retrieval(rule.n, encoded, seed)]
    if rule.kind == "sets":
        return [_sets(str(rule.attribute), encoded)]
    if rule.kind == "captions":
        if pool:
            texts = _of_pool(rule.n, encoded, pool, seed)
        else:
            table = candidates_of(encoded.table.keys, encoded.groups, encoded.captions, n=rule.n, seed=seed)
            texts = [[encoded.captions[row] for row in of_sample] for of_sample in table.tolist()]
        found = _of_texts(choice_metric(rule.n), list(range(len(texts))), texts)
        return [replace(found, further_ranks=rule.ranks)]
    asked = []
    for attribute, phrase in rule.phrases.items():
        written = written_candidates(
            encoded.captions, encoded.table.attributes, encoded.table.keys,
            name=attribute, phrase=phrase, most=rule.n, seed=seed,
        )  # fmt: skip
        rows = [row for row, texts in enumerate(written) if texts]
        if not rows:
            raise EmptyClass(
                f"candidates.phrases.{attribute}: no caption states the value as '{phrase}' beside another value."
            )
        asked.append(_of_texts(matched_metric(attribute), rows, [written[row] for row in rows]))
    return asked


def _of_pool(n: int, encoded: Encoded, pool: Sequence[tuple[str, str]], seed: int) -> list[list[str]]:
    """Draw the texts of each image by (seed, key): its own first, then n - 1 others of the pool, of other groups."""
    texts = []
    for key, group, own in zip(encoded.table.keys, encoded.groups, encoded.captions, strict=True):
        of_group = {caption for other, caption in pool if other == group} | {own}
        others = sorted({caption for _, caption in pool} - of_group)
        if len(others) < n - 1:
            raise EmptyClass(f"{n} candidates need {n - 1} captions of other groups; the pool has {len(others)}.")
        generator = torch.Generator().manual_seed(derive_seed("candidates", seed, key))
        drawn = torch.randperm(len(others), generator=generator)[: n - 1]
        texts.append([own, *(others[place] for place in drawn.tolist())])
    return texts


def _of_texts(name: str, rows: list[int], texts: Sequence[Sequence[str]]) -> Question:
    """Number the texts; each image's own comes first in `texts`, and stands where its number puts it."""
    values = sorted({text for of_sample in texts for text in of_sample})
    number = {text: place for place, text in enumerate(values)}
    width = max(map(len, texts))
    table, right = torch.full((len(rows), width), -1), torch.empty(len(rows), dtype=torch.long)
    for row, of_sample in enumerate(texts):
        numbers = sorted(number[text] for text in of_sample)
        table[row, : len(numbers)] = torch.tensor(numbers)
        right[row] = numbers.index(number[of_sample[0]])
    return Question(name, torch.tensor(rows), list(values), table, right)


def _classes(rule: CandidateRule, encoded: Encoded) -> Question:
    attribute = str(rule.attribute)
    labels = [sample.get(attribute) for sample in encoded.table.attributes]
    if attribute == CLASS_NAME and not any(labels):
        labels = [name or None for name in encoded.table.class_names]
    groups: dict[str, set[str]] = {}
    for label, group in zip(labels, encoded.groups, strict=True):
        if label is not None:
            groups.setdefault(label, set()).add(group)
    names = sorted(sorted(groups, key=lambda name: (-len(groups[name]), name))[: rule.most_values])
    if len(names) < 2:
        raise EmptyClass(f"candidates: attribute '{attribute}' has {len(names)} values; a choice needs at least 2.")
    values: list[ConditionInput] = [rule.template.format(name) for name in names] if rule.template else []
    if not rule.template:
        if wrong := [name for name in names if not name.isdigit()]:
            raise ConfigError(
                f"candidates: value '{wrong[0]}' of '{attribute}' is not a class number.",
                fix='candidates.template="a photo of a {}" for a text-conditional model',
            )
        values = [int(name) for name in names]
    rows = [row for row, label in enumerate(labels) if label in names]
    right = torch.tensor([names.index(str(labels[row])) for row in rows])
    table = torch.arange(len(names)).repeat(len(rows), 1)
    return Question(f"{CLASSES}{attribute}", torch.tensor(rows), values, table, right)


def _retrieval(n: int, encoded: Encoded, seed: int) -> Question:
    generator = torch.Generator().manual_seed(derive_seed("retrieval", seed))
    chosen: list[int] = []
    groups, texts = set[str](), set[str]()
    for row in torch.randperm(len(encoded.table), generator=generator).tolist():
        if len(chosen) < n and encoded.groups[row] not in groups and encoded.captions[row] not in texts:
            chosen.append(row)
            groups.add(encoded.groups[row])
            texts.add(encoded.captions[row])
    if len(chosen) < n:
        raise EmptyClass(
            f"retrieval among {n} needs {n} images of different groups and captions; there are {len(chosen)}."
        )
    chosen.sort()
    values: list[ConditionInput] = [encoded.captions[row] for row in chosen]
    table = torch.arange(n).repeat(n, 1)
    return Question(f"retrieval_of_{n}", torch.tensor(chosen), values, table, torch.arange(n), is_square=True)


def _sets(attribute: str, encoded: Encoded) -> Question:
    """Ask the images of each set for their captions; sets of one image, or with a caption twice, are left out."""
    members: dict[str, list[int]] = {}
    for row, sample in enumerate(encoded.table.attributes):
        if attribute in sample:
            members.setdefault(sample[attribute], []).append(row)
    members = {
        name: rows for name, rows in members.items() if len({encoded.captions[row] for row in rows} - {""}) == len(rows)
    }
    rows = sorted(row for of_set in members.values() if len(of_set) > 1 for row in of_set)
    if not rows:
        raise EmptyClass(
            f"candidates: no two images with different captions share a value of '{attribute}'; a set needs two."
        )
    sets = tuple(encoded.table.attributes[row][attribute] for row in rows)
    values = sorted({"", *(encoded.captions[row] for row in rows)})
    number = {text: place for place, text in enumerate(values)}
    width = 1 + max(len(members[name]) for name in sets)
    table, right = torch.full((len(rows), width), -1), torch.empty(len(rows), dtype=torch.long)
    for place, (row, name) in enumerate(zip(rows, sets, strict=True)):
        numbers = [0, *sorted(number[encoded.captions[other]] for other in members[name])]
        table[place, : len(numbers)] = torch.tensor(numbers)
        right[place] = numbers.index(number[encoded.captions[row]])
    return Question(f"sets_{attribute}", torch.tensor(rows), list(values), table, right, sets=sets)


def require_condition(spec: BackboneSpec, values: Sequence[ConditionInput]) -> None:
    """Refuse a backbone that does not take the candidates as its condition. Raises: ConfigError."""
    needed = "caption" if isinstance(values[0], str) else "label"
    if needed in spec.conditions:
        return
    kind = "unconditional" if spec.conditions == ("empty",) else "not conditioned on such candidates"
    raise ConfigError(
        f"backbone '{spec.name}' is {kind}: its errors are the same for all of them.",
        f"its conditions: {', '.join(spec.conditions)}; needed: {needed}",
        fix="a text-conditional model, or classes as numbers for a class-conditional one",
    )


def require_distinct(question: Question, encoders: Mapping[str, TextEncoder]) -> None:
    """Refuse texts that are too long for every text encoder, and candidates of an image that tokenise alike.

    Raises: ConfigError with the texts.
    """
    texts = [str(value) for value in question.values]
    if not encoders or not isinstance(question.values[0], str):
        return
    tokens = [encoder.tokenizer(texts, truncation=False, verbose=False).input_ids for encoder in encoders.values()]
    for place, text in enumerate(texts):
        fits = [len(ids[place]) <= encoder.length for ids, encoder in zip(tokens, encoders.values(), strict=True)]
        if not any(fits):
            longest = max(encoder.length for encoder in encoders.values())
            raise ConfigError(
                f"the candidate '{text}' has {min(len(ids[place]) for ids in tokens)} tokens; the text encoder reads "
                f"{longest}, and its end would be ignored.",
                fix="shorter captions or another template",
            )
    of_tokens: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place in range(len(texts)):
        of_tokens.setdefault(tuple(tuple(ids[place]) for ids in tokens), []).append(place)
    alike = {place: number for number, places in enumerate(of_tokens.values()) for place in places}
    for row in question.candidates.tolist():
        seen: dict[int, int] = {}
        for place in row:
            if place < 0:
                continue
            other = seen.setdefault(alike[place], place)
            if other != place:
                raise ConfigError(
                    f"the candidates '{texts[other]}' and '{texts[place]}' tokenise alike: no error can differ.",
                    fix="captions that differ in words the tokenizer knows",
                )
