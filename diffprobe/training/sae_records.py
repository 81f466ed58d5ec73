"""What result.json says of a sparse autoencoder. Owns the names of its records, their controls and their details."""

import math
from typing import Any

from diffprobe.core.result import MetricRecord
from diffprobe.metrics.dead_latents import Dead
from diffprobe.metrics.decoder_coherence import Coherence
from diffprobe.metrics.density_histogram import DENSE, DensityHistogram
from diffprobe.training.sae_scores import Scores

_CONTROLS = {"fvu": {"mean_prediction": 1.0}, "explained_variance": {"mean_prediction": 0.0}}


def split_records(
    scores: Scores, *, split: str, cell: str | None, probe: str, detail: dict[str, Any]
) -> list[MetricRecord]:
    """Return a record for each number that was measured on the rows of a split.

    `dead_fraction` says in its details that its window is all of these rows, and `dense_fraction` holds the histogram.

    Args:
        detail: what every record says besides.
    """
    own: dict[str, dict[str, Any]] = {
        "dead_fraction": {"window": scores.n, "dead": "active on no row of this split, with the saved weights"},
        "dense_fraction": {"dense": f"active on {DENSE:.0%} of the rows or more", "histogram": _plain(scores.density)},
    }
    return [
        MetricRecord(
            name=name,
            value=value,
            split=split,
            n=scores.n,
            cell=cell,
            probe=probe,
            controls=_CONTROLS.get(name, {}),
            detail={**detail, **own.get(name, {})},
        )
        for name, value in scores.values.items()
    ]


def window_record(dead: Dead, *, cell: str | None, probe: str, detail: dict[str, Any]) -> MetricRecord:
    """Return what AuxK saw at the end of training: latents silent over the last rows, with the weights of each step."""
    return MetricRecord(
        name="windowed_dead_fraction",
        value=float(dead.fraction),
        split="train",
        n=dead.n,
        cell=cell,
        probe=probe,
        detail={
            **detail,
            "window": dead.window,
            "dead": f"active on none of the last {dead.window} rows of training, with the weights of each step",
        },
    )


def coherence_records(
    coherence: Coherence, *, d_in: int, cell: str | None, probe: str, detail: dict[str, Any]
) -> list[MetricRecord]:
    """Return how alike the decoder rows are: the largest and the mean |cosine| of two. `n` counts decoder rows.

    The mean stands beside that of random directions, E|cos| = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) in d dimensions.
    """
    own: dict[str, Any] = {"split": "train", "n": detail["n_latents"], "cell": cell, "probe": probe}
    by_chance = math.exp(math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)) / math.sqrt(math.pi)
    largest = {**detail, "pair": list(coherence.pair)}
    return [
        MetricRecord(name="decoder_coherence", value=coherence.largest, detail=largest, **own),
        MetricRecord(
            name="mean_decoder_coherence",
            value=coherence.mean,
            controls={"random_direction": by_chance},
            detail=detail,
            **own,
        ),
    ]


def _plain(density: DensityHistogram) -> dict[str, Any]:
    edges = density.edges.tolist()
    return {
        "log10_first_edge": edges[0],
        "log10_bin_width": -edges[0] / (len(edges) - 1),
        "counts": density.counts.tolist(),
        "n_never": density.n_never,
        "n_below": density.n_below,
    }
