"""Labelled images of dense evaluations: nested sets drawn by group, and truth exchanged between groups."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffprobe.core.errors import ConfigError


def labelled_images(groups: Sequence[str], n: int, *, seed: int, draw: int = 0) -> list[int]:
    """Return the positions of `n` images, whole groups in a seeded order: the first ones are a smaller set of its kind.

    Args:
        groups: group of each image.
        draw: number of the draw; each has its own order of groups.

    >>> labelled_images(["a", "b", "a", "c"], 3, seed=0)[:2] == labelled_images(["a", "b", "a", "c"], 2, seed=0)
    True
    """
    names = sorted(set(groups))
    place = {names[i]: rank for rank, i in enumerate(np.random.default_rng([seed, draw]).permutation(len(names)))}
    return sorted(range(len(groups)), key=lambda i: (place[groups[i]], i))[:n]


def exchanged_truth(groups: Sequence[str], *, seed: int, draw: int = 0) -> list[int]:
    """Return for each labelled image the position of the one whose truth it gets, which is of another group.

    Groups and the images in them are put in an order that is drawn anew for each number of images, and the truth is
    moved on by the size of the largest group. Each truth is used once.

    Raises: ConfigError if one group has more than half of the images: then some truth must stay within it.

    >>> exchanged_truth(["a", "b"], seed=0)
    [1, 0]
    """
    n = len(groups)
    if not n:
        return []
    largest, size = Counter(groups).most_common(1)[0]
    if 2 * size > n:
        raise ConfigError(
            f"shuffled_truth: group '{largest}' has {size} of {n} labelled images, so that not each of them can get "
            "the truth of another group.",
            fix="larger numbers in labels, or controls without shuffled_truth",
        )
    rng = np.random.default_rng([seed, n, draw])
    names = sorted(set(groups))
    place = {names[i]: rank for rank, i in enumerate(rng.permutation(len(names)))}
    order = sorted((int(i) for i in rng.permutation(n)), key=lambda i: place[groups[i]])
    moved = order[size:] + order[:size]
    of = dict(zip(order, moved, strict=True))
    return [of[i] for i in range(n)]
