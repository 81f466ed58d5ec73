"""A seeded subset of the labels of a training set: a share of each class, smaller shares inside larger ones.

The choice depends on the seed, the target and the keys: not on order, batch, process or cell.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffprobe.core.rng import derive_seed
from diffprobe.probes.shuffled_labels import rows_among


class LabelSubset:
    """Which training samples a classifier learns from.

    Samples of a class are ranked by a random number; the first ceil(fraction * n) of n are kept, at least one.

    Args:
        hashes: `hash_keys` of all training samples, in any order, without duplicates.
        label: their labels; samples labelled -1 are not kept.
        fraction: share of each class, above 0, at most 1.
        seed: seed of the ranks.
        target: name of the target; different targets get different ranks.
    """

    def __init__(
        self,
        hashes: Int[Tensor, " samples"],
        label: Int[Tensor, " samples"],
        *,
        fraction: float,
        seed: int,
        target: str,
    ) -> None:
        self.hashes, order = hashes.sort()
        known = label[order]
        generator = torch.Generator().manual_seed(derive_seed("label_subset", seed, target))
        rank = torch.rand(len(known), generator=generator, dtype=torch.float64)
        self.kept: Bool[Tensor, " samples"] = torch.zeros(len(known), dtype=torch.bool)
        for value in known[known >= 0].unique():
            rows = (known == value).nonzero()[:, 0]
            count = max(1, -int(-fraction * len(rows) // 1))
            self.kept[rows[rank[rows].argsort()[:count]]] = True
        self.label = torch.where(self.kept, known, -1)
        """The labels that are left, -1 for the others, in the order of the hashes."""

    def mask(self, hashes: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Return whether each of some training samples is kept. Raises: RunFailed for an unknown key."""
        return self.kept[rows_among(self.hashes, hashes)].to(hashes.device)
