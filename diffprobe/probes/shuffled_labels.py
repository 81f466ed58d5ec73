"""The control `shuffled_labels`: one seeded permutation of the known training labels, by key.

The permutation depends on the seed, the name of the target and the set of keys alone: not on order, batch, rank or
cell. Source: control tasks, Hewitt and Liang 2019.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import RunFailed
from diffprobe.core.rng import derive_seed


def hash_keys(keys: list[str]) -> Int[Tensor, " batch"]:
    """Return a 63-bit hash of each key, which can be sorted and gathered over processes.

    >>> hash_keys(["cat", "dog"]).equal(hash_keys(["cat", "dog"]))
    True
    """
    return torch.tensor([derive_seed("key", key) for key in keys], dtype=torch.int64)


class ShuffledLabels:
    """The labels of a training set, permuted among the samples that have one.

    Args:
        hashes: `hash_keys` of all training samples, in any order, without duplicates.
        label: their labels; -1 stays -1.
        seed: seed of the control.
        target: name of the target; different targets get different permutations.
        draw: number of the permutation.

    Raises: RunFailed for a duplicate key.
    """

    def __init__(
        self, hashes: Int[Tensor, " samples"], label: Int[Tensor, " samples"], *, seed: int, target: str, draw: int = 0
    ) -> None:
        self._hashes, order = hashes.sort()
        if (self._hashes[1:] == self._hashes[:-1]).any():
            raise RunFailed("duplicate key in one pass over the training set.", "keys must be unique in a shard set")
        self._label = label[order].clone()
        known = (self._label >= 0).nonzero().flatten()
        generator = torch.Generator().manual_seed(derive_seed("shuffled_labels", seed, target, draw))
        self._label[known] = self._label[known[torch.randperm(len(known), generator=generator)]]

    def of(self, hashes: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the shuffled labels of some training samples. Raises: RunFailed for an unknown key."""
        plain = hashes.cpu()
        rows = torch.searchsorted(self._hashes, plain).clamp(max=len(self._hashes) - 1)
        if not self._hashes[rows].equal(plain):
            raise RunFailed("a training batch has a key that the pass over the training set did not see.")
        return self._label[rows].to(hashes.device)
