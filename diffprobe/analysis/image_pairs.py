"""Pairs of images, each image in one pair at most, under conditions on their attributes."""

import random
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed

T = TypeVar("T")


def disjoint_pairs(
    items: Sequence[T], fits: Callable[[T, T], bool], *, n: int, seed: int, what: str
) -> list[tuple[int, int]]:
    """Return pairs of positions: items are taken in a random order, each with the first later one that fits.

    The pairs depend on the items, their order and the seed, and fewer pairs are the first ones of more.

    Args:
        items: what is paired.
        fits: whether two items may be a pair, in this order.
        n: number of pairs.
        seed: seed of the order.
        what: the pairs, for the message.

    Raises: ConfigError if there are fewer than `n` such pairs.

    >>> disjoint_pairs("aabb", lambda x, y: x == y, n=2, seed=0, what="equal letters")
    [(0, 1), (3, 2)]
    """
    order = list(range(len(items)))
    random.Random(derive_seed("pairs", seed)).shuffle(order)
    found: list[tuple[int, int]] = []
    while order and len(found) < n:
        first = order.pop(0)
        place = next((i for i, other in enumerate(order) if fits(items[first], items[other])), None)
        if place is not None:
            found.append((first, order.pop(place)))
    if len(found) < n:
        raise ConfigError(
            f"{what}: {len(found)} pairs of {len(items)} images, {n} are asked for.",
            fix=f"n_pairs={len(found)}, or more images" if len(found) > 1 else "other conditions, or more images",
        )
    return found


def own_pairs(items: Sequence[T], fits: Callable[[T], bool], *, n: int, seed: int, what: str) -> list[tuple[int, int]]:
    """Return pairs of a position with itself, of items in a random order.

    Args:
        items: what is chosen from.
        fits: whether an item may be taken.
        n: number of pairs.
        seed: seed of the order.
        what: the pairs, for the message.

    Raises: ConfigError if there are fewer than `n` such items.
    """
    order = list(range(len(items)))
    random.Random(derive_seed("pairs", seed)).shuffle(order)
    found = [i for i in order if fits(items[i])]
    if len(found) < n:
        raise ConfigError(f"{what}: {len(found)} images of {len(items)} fit, {n} are asked for.", fix="fewer n_pairs")
    return [(i, i) for i in found[:n]]


def pair_clusters(pairs: Sequence[tuple[Hashable, Hashable]]) -> list[int]:
    """Return the number of the cluster of each pair: pairs whose images share a group, over any chain, are one.

    Args:
        pairs: the groups of both images of each pair.

    >>> pair_clusters([("a", "b"), ("c", "d"), ("b", "e"), ("d", "c")])
    [0, 1, 0, 1]
    """
    root: dict[Hashable, Hashable] = {}

    def find(group: Hashable) -> Hashable:
        while root.setdefault(group, group) != group:
            group = root[group]
        return group

    for one, other in pairs:
        root[find(other)] = find(one)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(find(one), len(numbers)) for one, _ in pairs]
