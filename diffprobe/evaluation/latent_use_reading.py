"""What can be read from each latent of `diffprobe eval latents`: AUROC of its best value, on held-out samples.

The codes are those of the denoiser as it runs, so that reading and use are of the same features; numbers are those of
`evaluation/latent_numbers.py`.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffprobe.core.groups import Groups, require_groups
from diffprobe.core.progress import ProgressDisplay
from diffprobe.evaluation.held_out import EncodedSplit, encode_split
from diffprobe.evaluation.latent_use_inputs import OpenedLatents, first_samples, tap_codes
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation

if TYPE_CHECKING:
    from diffprobe.core.progress import Bar
    from diffprobe.evaluation.latent_numbers import SplitCodes
    from diffprobe.scoring.latent_ablation import TapCodes

_MAX_VALUES = 64
"""Attributes with more values are not read: few samples have each of them."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What can be read from each latent, one entry per latent of the dictionary."""

    auroc: tuple[float | None, ...]
    """AUROC of the best value, on held-out samples; None where it cannot be measured."""
    auroc_q: tuple[float | None, ...]
    best_values: tuple[str, ...]
    """The value, chosen on training samples, as target=value; "" for none."""
    n: int
    """Held-out samples."""
    notes: tuple[str, ...]
    """Sentences on what was not measured, and why."""

    def first(self, n: int, targets: Container[str] | None = None) -> tuple[int, ...]:
        """Return the latents of the largest AUROC, in the order of their numbers.

        Args:
            n: how many.
            targets: targets of their best values; None for any.
        """
        known = [
            (-value, latent)
            for latent, value in enumerate(self.auroc)
            if value is not None and (targets is None or self.best_values[latent].partition("=")[0] in targets)
        ]
        return tuple(sorted(latent for _, latent in sorted(known)[:n]))

    def passes(self, rate: float) -> list[bool]:
        """Return whether the q of each latent is at most a rate."""
        return [q is not None and q <= rate for q in self.auroc_q]


def read_latents(config: LatentUseEvaluation, opened: OpenedLatents) -> "tuple[EncodedSplit, Reading, TapCodes]":
    """Return the held-out samples, the reading of all latents, and the codes of the first `limit` of them."""
    from diffprobe.evaluation.latent_codes import CLASS
    from diffprobe.evaluation.latent_numbers import latent_numbers

    data, network, cell = opened.trained.config.data, opened.network, opened.cell
    limit = config.read_limit if data.limit is None else min(config.read_limit, data.limit)
    splits = [
        encode_split(opened.request, network, split, opened.group, limit=limit)
        for split in (data.train_split, opened.split)
    ]
    n = min(config.limit, len(splits[1]))
    require_groups(len(set(splits[1].groups[:n])), n, what="intervals over groups")
    shard_set = opened.request.shard_set
    values = {CLASS: tuple(shard_set.classes), **{name: tuple(of) for name, of in shard_set.attributes.items()}}
    values = {name: of for name, of in values.items() if name != opened.group and 2 <= len(of) <= _MAX_VALUES}
    found, kept = [], None
    with ProgressDisplay(transient=True) as progress:
        title = f"{cell.name}: codes"
        with progress.bar(sum(map(len, splits)) + n, title, unit="passes", keep=False) as bar:
            for split in splits:
                found.append(_codes(opened, split, values, bar))
            kept = tap_codes(opened, first_samples(splits[1], n), bar)
    if not values:
        none = (None,) * opened.sae.n_latents
        note = "No reading: the data set has neither classes nor attributes."
        return splits[1], Reading(
            auroc=none, auroc_q=none, best_values=("",) * len(none), n=len(splits[1]), notes=(note,)
        ), kept  # fmt: skip
    numbers = latent_numbers(found[0], found[1], values)
    columns = {column.key: tuple(column.values) for column in numbers.columns}
    none = (None,) * opened.sae.n_latents
    reading = Reading(
        auroc=columns.get("auroc", none), auroc_q=columns.get("auroc_q", none), best_values=numbers.best_values,
        n=len(splits[1]), notes=numbers.notes,
    )  # fmt: skip
    return splits[1], reading, kept


def _codes(opened: OpenedLatents, split: EncodedSplit, values: Mapping[str, Sequence[str]], bar: "Bar") -> "SplitCodes":
    """Return one code per sample, the largest of its places, with labels; a part of the samples at a time."""
    import torch

    from diffprobe.analysis.latents.sparse_codes import CodeCollector
    from diffprobe.evaluation.latent_codes import CLASS
    from diffprobe.evaluation.latent_numbers import SplitCodes
    from diffprobe.scoring.intervention_network import HeldOut

    samples = split.of_condition[opened.cell.condition]
    collector = CodeCollector(opened.sae.n_latents, max_images=len(samples))
    for rows in torch.arange(len(samples)).split(opened.network.rows):
        keys = [samples.keys[row] for row in rows.tolist()]
        inputs = [samples.inputs[row] for row in rows.tolist()]
        part = EncodedSplit({opened.cell.condition: HeldOut(samples.latents[rows], keys, inputs)}, [], {}, rows)
        dense = tap_codes(opened, part, bar).largest(opened.sae.n_latents)
        activation, latent = dense.topk(max(int((dense > 0).sum(1).max()), 1), dim=1)
        collector.update(activation, latent, keys)
    codes = collector.result()
    row_of = {key: row for row, key in enumerate(samples.keys)}
    order = np.array([row_of[key] for key in codes.keys], dtype=np.int64)
    ids = {CLASS: split.labels, **split.attributes}
    return SplitCodes(
        codes=codes, targets={name: ids[name].numpy()[order].astype(np.int64) for name in values},
        groups=Groups.of([split.groups[row] for row in order.tolist()], at_least=1),
    )  # fmt: skip
