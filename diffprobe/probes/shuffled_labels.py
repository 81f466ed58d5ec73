"""The control `shuffled_labels`: seeded permutations of the known training labels, by group and key.

A permutation depends on the seed, the name of the target, the number of the draw, the set of keys and what belongs
together: not on order, batch, rank or cell. Source: control tasks, Hewitt and Liang 2019.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import RunFailed
from diffprobe.core.groups import SINGLE_SAMPLES, Groups
from diffprobe.core.rng import derive_seed
from diffprobe.probes.group_permutation import GroupPermutation


def hash_keys(keys: list[str]) -> Int[Tensor, " batch"]:
    """Return a 63-bit hash of each key, which can be sorted and gathered over processes.

    >>> hash_keys(["cat", "dog"]).equal(hash_keys(["cat", "dog"]))
    True
    """
    return torch.tensor([_hash_of(key) for key in keys], dtype=torch.int64)


@lru_cache(maxsize=2**16)  # a training run asks for the same keys in each epoch; about 10 MB
def _hash_of(key: str) -> int:
    return derive_seed("key", key)


def rows_among(known: Int[Tensor, " samples"], hashes: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the positions of some hashes among all of a training set, on the CPU.

    Args:
        known: the hashes of the training set in ascending order.
        hashes: those to find, on any device.

    Raises: RunFailed for a hash that is not there.
    """
    plain = hashes.cpu()
    rows = torch.searchsorted(known, plain).clamp(max=len(known) - 1)
    if not known[rows].equal(plain):
        raise RunFailed("a training batch has a key that the pass over the training set did not see.")
    return rows


class ShuffledLabels:
    """The labels of a training set, permuted among the samples that have one.

    Groups keep their structure (`GroupPermutation`): a label that all samples of a group share moves with the whole
    group, a label that varies within a group is permuted inside it. Permuted sample by sample, the label of a group
    would vary inside it, and a control would have to learn what no probe of the true label has to.

    Args:
        hashes: `hash_keys` of all training samples, in any order, without duplicates.
        label: their labels; -1 stays -1.
        group: id of the group of each sample; -1 for a group of its own. None where samples are independent.
        group_by: name of the attribute that the groups are values of, for the record; "sample" for none.
        seed: seed of the control.
        target: name of the target; different targets get different permutations.
        n_draws: number of permutations.

    Raises: RunFailed for a duplicate key.
    """

    def __init__(
        self,
        hashes: Int[Tensor, " samples"],
        label: Int[Tensor, " samples"],
        *,
        seed: int,
        target: str,
        group: Int[Tensor, " samples"] | None = None,
        group_by: str = SINGLE_SAMPLES,
        n_draws: int = 1,
    ) -> None:
        self.group_by = group_by
        self.hashes, order = hashes.sort()
        """The hashes in ascending order."""
        if (self.hashes[1:] == self.hashes[:-1]).any():
            raise RunFailed("duplicate key in one pass over the training set.", "keys must be unique in a shard set")
        true = label[order]
        known = true >= 0
        ids = np.full(len(order), -1, dtype=np.int64) if group is None else group[order].numpy()
        self.permutation = GroupPermutation(true[known].numpy(), Groups.of_values(ids[known.numpy()]))
        self._label = true.int()[:, None].repeat(1, n_draws)
        for draw in range(n_draws):
            self._label[known, draw] = torch.from_numpy(self._draw(derive_seed("shuffled_labels", seed, target, draw)))
        self.changed = float((self._label[known, 0] != true[known]).double().mean()) if known.any() else 0.0

    def _draw(self, seed: int) -> NDArray[np.int32]:
        """Return one permutation of the known labels."""
        generator = torch.Generator().manual_seed(seed)
        between = torch.randperm(self.permutation.n_between, generator=generator)
        within = torch.rand(self.permutation.n_inside, generator=generator, dtype=torch.float64)
        return self.permutation.arrange(between.numpy()[None], within.numpy()[None])[0].astype(np.int32)

    def describe(self) -> dict[str, str | int | float]:
        """Return how labels were permuted, for `MetricRecord.detail`.

        Returns: group_by, the attribute of the groups or "sample"; groups_permuted_whole and groups_permuted_within,
            numbers of groups; changed, the share of labelled training samples that the first permutation gives another
            label, 0..1.
        """
        return {
            "group_by": self.group_by,
            "groups_permuted_whole": self.permutation.n_between,
            "groups_permuted_within": self.permutation.n_within,
            "changed": self.changed,
        }

    def of(self, hashes: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the labels of some training samples by the first permutation. Raises: RunFailed for an unknown key."""
        return self.draws_of(hashes)[:, 0]

    def draws_of(self, hashes: Int[Tensor, " batch"]) -> Int[Tensor, "batch n_draws"]:
        """Return the labels of some training samples by each permutation. Raises: RunFailed for an unknown key."""
        return self._label[rows_among(self.hashes, hashes)].long().to(hashes.device)

    def at(self, rows: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the labels of some training samples by the first permutation, by positions among `hashes`."""
        return self._label[rows, 0].long()
