"""The control `shuffled_captions`: the captions of the training set, exchanged between whole groups. NumPy only."""

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.groups import Groups


def shuffle_captions(captions: NDArray[np.int64], groups: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Give the samples of each group the captions of another group.

    Groups are put in a random order on a circle, and each takes the captions of the next one, in a random order and
    repeated where it has more samples. So no group keeps its own captions, and captions that occur together still do.
    A single group is permuted within.

    Args:
        captions: id of the caption of each sample.
        groups: id of the group of each sample; -1 for a group of its own.
        seed: seed of both orders.

    Returns: the id of the caption that each sample gets.

    >>> shuffle_captions(np.array([0, 1, 2, 3]), np.array([5, 5, 8, 8]), seed=0)[:2] > 1
    array([ True,  True])
    """
    members = Groups.of_values(groups).members()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(members))
    found = captions.copy()
    for place, number in enumerate(order):
        source = members[order[(place + 1) % len(order)]]
        taken = draw.permutation(captions[source])
        found[members[number]] = np.resize(taken, len(members[number]))
    return found
