"""The numbers of the explorer's table, one column each, with the controls beside which they are read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.label_purity import (
    expected_entropy,
    expected_largest_share,
    normalised_entropy,
    purity,
    top_classes,
)
from diffprobe.analysis.latents.matching import Matches, match_decoders, nearest_in_dictionary, random_cosines
from diffprobe.evaluation.explore_pass import PassResult
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.report.explorer.records import Column, Neighbour

ACTIVITY = ("frequency", "n_active", "mean_activation", "max_activation")
"""Keys of the columns on how often and how strongly a latent is active, which come first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Similar:
    """Latents that resemble each latent of a run."""

    nearest: Matches
    """In the same dictionary, by absolute cosine."""
    seeds: tuple[tuple[str, Matches], ...]
    """In each other seed, by cosine: name of the seed, and its matches."""
    random: float | None
    """Median of the largest cosine with as many random directions; None without other seeds."""

    @classmethod
    def of(cls, run: ExploredRun, n: int) -> "Similar":
        """Compare the decoder of a run with itself and with those of its other seeds."""
        decoder = run.sae.W_dec.detach().cpu().numpy()
        seeds = [(seed.name, match_decoders(decoder, seed.sae.W_dec.detach().cpu().numpy())) for seed in run.seeds]
        return cls(
            nearest=nearest_in_dictionary(decoder, n), seeds=tuple(seeds),
            random=float(np.nanmedian(random_cosines(decoder, len(decoder)))) if seeds else None,
        )  # fmt: skip

    def neighbours(self, latent: int) -> list[Neighbour]:
        """Return the nearest latents of the same dictionary."""
        pairs = zip(self.nearest.latent[latent].tolist(), self.nearest.similarity[latent].tolist(), strict=True)
        return [Neighbour(latent=other, cosine=cosine) for other, cosine in pairs if other >= 0]

    def recurrence(self, latent: int) -> list[Neighbour]:
        """Return the matched latent of each other seed."""
        found = [(name, int(m.latent[latent, 0]), float(m.similarity[latent, 0])) for name, m in self.seeds]
        return [Neighbour(latent=other, cosine=cosine, run=name) for name, other, cosine in found if other >= 0]

    def mean_recurrence(self) -> NDArray[np.float64]:
        """Return the mean cosine of each latent with its matches in the other seeds, NaN without one."""
        return np.mean([match.similarity[:, 0] for _, match in self.seeds], axis=0)


def columns_of(run: ExploredRun, found: PassResult, similar: Similar, n_top: int) -> list[Column]:
    """Return the columns of frequency, strength, top images, redundancy and recurrence."""
    sums, split = found.sums, run.split
    active = sums.n_active > 0
    mean = np.where(active, sums.total / np.maximum(sums.n_active, 1), np.nan)
    columns = [
        Column(
            key="frequency", title="frequency", kind="share", values=_values(sums.n_active / sums.n_images),
            help=f"Share of the images of split '{split}' on which the latent is active.",
        ),
        Column(
            key="n_active", title="images", kind="count", values=_values(sums.n_active),
            help=f"Images of split '{split}' on which the latent is active.",
        ),
        Column(
            key="mean_activation", title="mean", values=_values(mean),
            help=f"Mean activation over the images of split '{split}' on which it is active, in the unit of the code.",
        ),
        Column(
            key="max_activation", title="largest", values=_values(np.where(active, sums.maximum, np.nan)),
            help=f"Largest activation on an image of split '{split}', in the unit of the code.",
        ),
    ]  # fmt: skip
    for name in found.labels:
        columns += _label_columns(found, name, n_top, split)
    columns.append(
        Column(
            key="nearest_cosine",
            title="nearest",
            values=_values(similar.nearest.similarity[:, 0]),
            help="Cosine of the decoder vector with the nearest other one of the same dictionary (redundancy).",
        )
    )
    if similar.seeds and similar.random is not None:
        columns.append(
            Column(
                key="recurrence", title="recurrence", values=_values(similar.mean_recurrence()),
                help=f"Cosine with the most similar decoder vector of another seed, mean over {len(similar.seeds)} "
                "other seed(s). Control: the median over latents against as many random directions.",
                controls=(("random directions", similar.random),),
            )
        )  # fmt: skip
    return columns


def _label_columns(found: PassResult, name: str, n_top: int, split: str) -> list[Column]:
    """Return purity and entropy of the top images by one label; none where fewer than two values occur."""
    frequencies = found.sums.by_label[name].n_images
    if (frequencies > 0).sum() < 2:
        return []
    top = found.top_labels(name, n_top)
    share = purity(top, top_classes(top))
    entropy = normalised_entropy(top, len(frequencies))
    what = f"the up to {n_top} most active images of split '{split}'"
    return [
        Column(
            key=f"purity_{name}", title=f"purity: {name}", kind="share", values=_values(share),
            help=f"Share of the most frequent {name} among {what}. The value is chosen on the same images, so compare "
            f"it with its expectation for {n_top} images drawn at random; a latent with fewer images has a larger one.",
            controls=(("random images", expected_largest_share(frequencies, n_top)),),
        ),
        Column(
            key=f"entropy_{name}", title=f"entropy: {name}", values=_values(entropy),
            help=f"Entropy of the {name} among {what}, as a share of the largest possible one; 0: all of one value.",
            controls=(("random images", expected_entropy(frequencies, n_top)),) if n_top > 1 else (),
        ),
    ]  # fmt: skip


def _values(numbers: NDArray[np.float64] | NDArray[np.int64]) -> Sequence[float | None]:
    return [None if number != number else number for number in numbers.tolist()]
