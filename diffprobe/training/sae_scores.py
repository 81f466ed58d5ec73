"""Scores of a sparse autoencoder on a split, over all rows and for each cell, and their records in `result.json`.

What is measured are the registered metrics (`diffprobe/metrics/__init__.py`): no metric is named here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from diffprobe.core.registry import METRICS
from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import RowValues
from diffprobe.metrics import measured_on
from diffprobe.metrics.dead_latents import NAME as WINDOWED
from diffprobe.metrics.dead_latents import Dead
from diffprobe.metrics.decoder_coherence import WholeDecoder
from diffprobe.metrics.grouped import Grouped
from diffprobe.probes.sae.types import Code

_N_ROWS = "n_rows"


class Measurement(NamedTuple):
    """The value of one metric, and what its record holds besides."""

    value: float
    """The value."""
    controls: dict[str, float]
    """Control name -> its value."""
    detail: dict[str, Any]
    """Further facts, in values that JSON can hold."""


class Scores(NamedTuple):
    """The metrics of some rows, or of a decoder."""

    measured: dict[str, Measurement]
    """Metric name -> its measurement."""
    n: int
    """Number of rows; of a decoder, of latents."""

    @property
    def values(self) -> dict[str, float]:
        """Metric name -> value."""
        return {name: measurement.value for name, measurement in self.measured.items()}

    def records(self, *, split: str, cell: str | None, probe: str, detail: dict[str, Any]) -> list[MetricRecord]:
        """Return one record per metric.

        Args:
            split, cell, probe: see `MetricRecord`.
            detail: what every record holds; the metric's own details are added.
        """
        return [
            MetricRecord(
                name=name,
                value=found.value,
                split=split,
                n=self.n,
                cell=cell,
                probe=probe,
                controls=found.controls,
                detail={**detail, **found.detail},
            )
            for name, found in self.measured.items()
        ]


class SplitScores(nn.Module):
    """The registered metrics of autoencoders (FOR = "sae") on one split: over all rows, and per cell if there are
    several.

    Args:
        d_in: width of a row.
        n_latents: number of latents.
        cells: names of the cells, in the order of `RowValues.group`.
    """

    def __init__(self, d_in: int, n_latents: int, cells: Sequence[str]) -> None:
        super().__init__()
        self.cells = tuple(cells) if len(cells) > 1 else ()
        self.whole = _make_metrics("sae", d_in, n_latents, {_N_ROWS: _RowCount()})
        self.by_cell = Grouped(self.whole, self.cells) if self.cells else None

    def update(self, rows: RowValues, x_hat: Float[Tensor, "rows d_in"], code: Code) -> None:
        """Add rows with their reconstructions and codes."""
        arguments = {"x": rows.x, "x_hat": x_hat, "values": code.values, "indices": code.indices}
        self.whole.update(**arguments)
        if not self.cells:
            return
        order = rows.group.argsort(stable=True)  # once: a mask for each cell would read all rows for each cell
        counts = rows.group.bincount(minlength=len(self.cells)).tolist()
        parts = {name: value[order].split(counts) for name, value in arguments.items()}
        for i, cell in enumerate(self.cells):
            cast(Grouped, self.by_cell).update(cell, **{name: values[i] for name, values in parts.items()})

    def compute(self) -> tuple[Scores, dict[str, Scores]]:
        """Return the scores over all rows and those of each cell, and discard the rows.

        Raises: NonFinite for rows that do not vary.
        """
        whole = _scores("sae", self.whole)
        by_cell = {cell: _scores("sae", cast(Grouped, self.by_cell)[cell]) for cell in self.cells}
        for part in self.children():
            part.reset()  # type: ignore[operator]
        return whole, by_cell


@torch.no_grad()
def decoder_scores(decoder: Float[Tensor, "n_latents d_in"], whole: WholeDecoder | None = None) -> Scores:
    """Return the registered metrics of decoders (FOR = "sae_decoder"). Raises: EmptyClass for a single latent.

    Args:
        whole: where `decoder` is a part, what is known of the whole one.
    """
    n_latents, d_in = decoder.shape if whole is None else whole.shape
    metrics = _make_metrics("sae_decoder", d_in, n_latents)
    metrics.to(decoder.device).update(decoder=decoder, whole=whole)
    return Scores(_scores("sae_decoder", metrics).measured, n_latents)


def window_scores(dead: Dead) -> Scores:
    """Return the share of dead latents at the end of training, over the last rows and with the weights of each step."""
    definition = f"active on none of the last {dead.window} rows of training, with the weights of each step"
    detail = {"window": dead.window, "dead": definition}
    return Scores({WINDOWED: Measurement(float(dead.fraction), {}, detail)}, dead.n)


def _make_metrics(what: str, d_in: int, n_latents: int, others: dict[str, Metric] | None = None) -> MetricCollection:
    """Make the registered metrics of `what`, by the names of their files. Those that inherit `update` share states."""
    metrics: dict[str, Metric] = dict(others or {})
    for metric in measured_on(what):
        metrics[_key(metric.file)] = METRICS.load(metric.file).make(d_in, n_latents)
    groups: dict[object, list[str]] = {}
    for name, made in metrics.items():
        shapes = tuple((state, getattr(value, "shape", None)) for state, value in made.metric_state.items())
        groups.setdefault((type(made).update, shapes), []).append(name)
    return MetricCollection(cast(dict[str, Any], metrics), compute_groups=list(groups.values()))


def _key(file: str) -> str:
    return f"metric_{file}"  # a bare name could be that of an attribute of nn.Module


def _scores(what: str, metrics: MetricCollection) -> Scores:
    made = dict(metrics.items(copy_state=False))
    names = {metric.name: _key(metric.file) for metric in measured_on(what)}
    n = int(made[_N_ROWS].compute()) if _N_ROWS in made else 0
    return Scores({name: _measure(made[key]) for name, key in names.items()}, n)


def _measure(metric: Metric) -> Measurement:
    value = float(metric.compute())
    with metric.sync_context(should_sync=metric.sync_on_compute):
        controls: dict[str, float] = getattr(metric, "controls", dict)()
        detail: dict[str, Any] = getattr(metric, "detail", dict)()
    return Measurement(value, controls, detail)


class _RowCount(Metric):
    """Number of rows."""

    full_state_update = False
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "rows d_in"]) -> None:
        self.n = self.n + len(x)

    def compute(self) -> Tensor:
        return self.n.clone()
