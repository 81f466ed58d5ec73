"""Panels of the report of a demo: the top samples of latents, and the two ends of directions.

Latents are selected on the training split; all displayed samples and numbers are of the test split. The selection rules
are in `analysis/`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.analysis.direction_extremes import ExtremeSample, direction_extremes
from diffprobe.analysis.latent_selection import LatentCounts, select_latents, summarize_latent
from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.analysis.top_samples import TopSample, TopSamples
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.demo.types import Outcome
from diffprobe.features.batch import FeatureTable
from diffprobe.features.fetch_images import fetch_images
from diffprobe.features.row_layout import by_place
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.direction import ContrastPair, Direction
from diffprobe.probes.sae.topk import KSAE, Code
from diffprobe.report.pages.panels import DirectionPanel, Estimate, LatentPanel, Picture, make_histogram
from diffprobe.runs.train import make_source, plan
from diffprobe.training.kinds.types import target_classes

if TYPE_CHECKING:
    from diffprobe.features.datamodule import FeatureSource

_ROWS = 1024


class LatentSection(NamedTuple):
    """The displayed latents of one autoencoder."""

    panels: tuple[LatentPanel, ...]
    rule: str
    cell: str
    n_classes: int


class _PictureLoader:
    """Loads pictures of the samples of one table, encoded for a page."""

    def __init__(self, source: "FeatureSource", table: FeatureTable, side: int) -> None:
        self._source, self._side = source, side
        self._captions = dict(zip(table.keys, table.captions, strict=True))
        self._shards = dict(zip(table.keys, table.shards, strict=True))

    def load(self, shown: Sequence[tuple[str, float]]) -> dict[tuple[str, float], Picture]:
        """Return a picture for each (key, value)."""
        request = self._source.request
        images = fetch_images(
            request.shard_set, dict.fromkeys(key for key, _ in shown), shards=self._shards, fields=request.fields
        )
        encoded = {}
        for key, image in images.items():
            image.thumbnail((self._side, self._side))
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", lossless=True)
            encoded[key] = buffer.getvalue()
        return {
            (key, value): Picture(data=encoded[key], caption=self._captions[key], key=key, value=value)
            for key, value in shown
        }


def latent_panels(outcome: Outcome) -> LatentSection | None:
    """Select latents of the demo's autoencoder on the training split and describe them on the test split.

    Returns: None if the demo trains no autoencoder.
    Raises: EmptyClass if no latent is active often enough.
    """
    runs = outcome.of_kind("sae")
    if not runs:
        return None
    run, _, folder = runs[0]
    settings, source = outcome.demo.config.panels, make_source(run)
    sae, classes = KSAE.from_pretrained(folder / "probes" / "sae"), source.classes
    cell = next(iter(source.widths))
    n_classes = max(len(classes), 1)  # counts of unlabelled images need one class that stays empty

    seen = LatentCounts(sae.n_latents, n_classes)
    for code, rows, table in _codes(sae, source.table(run.data.train_split), cell):
        seen.update(code.values, code.indices, table.label[rows])
    choice = select_latents(seen, n=settings.n_latents, min_active=settings.min_active)

    counts, top = LatentCounts(sae.n_latents, n_classes), TopSamples(sae.n_latents, settings.n_top)
    held_out = source.table(run.data.test_split)
    for code, rows, table in _codes(sae, held_out, cell):
        counts.update(code.values, code.indices, table.label[rows])
        top.update(code.values, code.indices, [table.keys[row] for row in rows.tolist()])
    samples = top.result()
    shown = [(sample.key, sample.activation) for latent in choice.latents for sample in samples[latent]]
    pictures = _PictureLoader(source, held_out, settings.picture_side).load(shown)
    panels = [_latent(counts, latent, samples[latent], pictures, classes, run.seed) for latent in choice.latents]
    rule = (
        f"{choice.rule} Chosen on {seen.n_samples:,} training samples ({choice.n_eligible:,} of {choice.n_latents:,} "
        f"latents qualify); images and numbers are those of the {counts.n_samples:,} test samples."
    )
    places = by_place(held_out.features[cell][:1], cell).shape[1:-1].numel()
    if places > 1:
        rule += f" A sample has {places:,} rows (positions and draws); its activation is the largest of theirs."
    return LatentSection(tuple(panels), rule, cell, len(classes))


@torch.no_grad()
def _codes(sae: KSAE, table: FeatureTable, cell: str) -> Iterator[tuple[Code, Tensor, FeatureTable]]:
    """Yield the codes of samples: where a sample has several rows, the largest activation of each latent over them."""
    values = by_place(table.features[cell], cell)
    n_places = values.shape[1:-1].numel()
    for rows in torch.arange(len(table)).split(max(_ROWS // n_places, 1)):
        x = values[rows]
        code = sae.encode(x.reshape(-1, x.shape[-1]))
        yield (code if x.ndim == 2 else _largest(code, len(rows), sae.n_latents)), rows, table


def _largest(code: Code, n_samples: int, n_latents: int) -> Code:
    """Return the code of samples from that of their rows, which follow each other."""
    activation = code.values.new_zeros(n_samples, n_latents)
    values, indices = code.values.reshape(n_samples, -1), code.indices.reshape(n_samples, -1)
    activation.scatter_reduce_(1, indices, values, "amax")
    return Code(*activation.topk(min(n_latents, values.shape[1]), dim=1))


def _latent(
    counts: LatentCounts,
    latent: int,
    samples: Sequence[TopSample],
    pictures: dict[tuple[str, float], Picture],
    classes: Sequence[str],
    seed: int,
) -> LatentPanel:
    shown = tuple(pictures[sample.key, sample.activation] for sample in samples)
    n = int(counts.n_active[latent])
    if counts.label_active[latent].sum() == 0:  # selected on the training split, not active on any test sample
        return LatentPanel(
            latent=latent, pictures=shown, n_active=n, density=n / counts.n_samples,
            mean_activation=float(counts.total[latent]) / max(n, 1), max_activation=float(counts.maximum[latent]),
            label_entropy=None,
        )  # fmt: skip
    found = summarize_latent(counts, latent, seed=seed)
    return LatentPanel(
        latent=latent, pictures=shown, n_active=found.n_active, density=found.density,
        mean_activation=found.mean_activation, max_activation=found.max_activation,
        label_entropy=found.label_entropy, chance_entropy=found.chance_entropy,
        chance_entropy_sd=found.chance_entropy_sd, top_label=classes[found.top_label],
        top_label_share=found.top_label_share,
    )  # fmt: skip


def direction_panels(outcome: Outcome, *, leave_out: Callable[[str], None] | None = None) -> tuple[DirectionPanel, ...]:
    """Describe each direction on the test split: AUROC of every estimator with interval and controls, ends, histogram.

    Ends and histogram are those of the demo's first estimator. The sign of a direction is fixed on the training split.

    Args:
        leave_out: takes a sentence for each direction that the test samples are too few for; None raises.
    Raises: EmptyClass, ConfigError for too few test samples of a pole or too few groups.
    """
    panels: dict[str, DirectionPanel] = {}
    for run, result, folder in outcome.of_kind("direction"):
        source, planned = make_source(run), plan(run)
        cell = next(iter(source.widths))
        table = source.table(run.data.test_split)
        for axis in planned.params.axes([cell], target_classes(run.probe.targets, source)):
            projection = _Projection(run, folder, axis, table, source.attributes, outcome.demo.config.panels.group_by)
            try:
                estimate = _estimate(outcome, run, result, axis, projection)
                if axis.target in panels:
                    known = panels[axis.target]
                    panels[axis.target] = replace(known, estimates=(*known.estimates, estimate))
                else:
                    loader = _PictureLoader(source, table, outcome.demo.config.panels.picture_side)
                    panels[axis.target] = _panel(outcome, run, axis, projection, estimate, loader)
            except (EmptyClass, ConfigError) as error:
                if leave_out is None:
                    raise
                leave_out(f"The direction '{axis.target}' ({run.probe.name}) is not shown: {error.what}")
    return tuple(panels.values())


class _Projection:
    """The test samples of both poles of one axis, projected onto its direction."""

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        axis: ContrastPair,
        table: FeatureTable,
        attributes: dict[str, tuple[str, ...]],
        group_by: str | None,
    ) -> None:
        direction = Direction.load(folder / "probes" / axis.target / axis.cell.replace(":", "."))
        side = axis.side(table.label if axis.target == "label" else table.attributes[axis.target])
        rows = (side >= 0).nonzero().squeeze(1)
        self.positive = side[rows] == 1
        self.values = direction.project(table.features[axis.cell][rows])
        self.keys = [table.keys[row] for row in rows.tolist()]
        self.captions = [table.captions[row] for row in rows.tolist()]
        self.groups = self.keys
        if group_by is not None:
            values = table.attributes[group_by][rows].tolist()
            names = attributes[group_by]
            self.groups = [names[v] if v >= 0 else key for v, key in zip(values, self.keys, strict=True)]
        self.seed = run.seed

    def interval(self, n_resamples: int) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the AUROC; whole groups are resampled."""

        def area(rows: object) -> float:
            chosen = torch.as_tensor(rows)
            return float(auroc(self.values[chosen, None], self.positive[chosen]))

        found = bootstrap_interval(area, self.groups, n_resamples=n_resamples, seed=self.seed)
        return found.low, found.high


def _estimate(
    outcome: Outcome, run: RunConfig, result: RunResult, axis: ContrastPair, projection: _Projection
) -> Estimate:
    controls: dict[str, Any] = {}
    for control in ("random_weights", "raw_pixels"):
        for other, found, _ in outcome.of_kind("direction", control=control):
            if other.probe.name == run.probe.name and axis.target in other.probe.targets:
                controls[control] = _record(found, axis.target).value
    interval = projection.interval(outcome.demo.config.panels.n_resamples)
    return replace(Estimate.from_record(_record(result, axis.target)), interval=interval, **controls)


def _record(result: RunResult, target: str) -> MetricRecord:
    for record in result.metrics:
        if (record.name, record.split, record.target) == ("auroc", "test", target):
            return record
    raise EmptyClass(
        f"the run '{result.run}' has no test AUROC of '{target}'.", fix="remove its folder and train it again"
    )


def _panel(
    outcome: Outcome,
    run: RunConfig,
    axis: ContrastPair,
    projection: _Projection,
    estimate: Estimate,
    loader: _PictureLoader,
) -> DirectionPanel:
    settings = outcome.demo.config.panels
    ends = direction_extremes(
        projection.values, projection.keys, projection.captions, n_each=settings.n_ends, group_by=projection.groups
    )
    shown = [(sample.key, sample.projection) for sample in (*ends.positive, *ends.negative)]
    pictures = loader.load(shown)

    def end(samples: Sequence[ExtremeSample]) -> tuple[Picture, ...]:
        return tuple(pictures[sample.key, sample.projection] for sample in samples)

    positive, negative = (" or ".join(value.split("|")) for value in (axis.positive, axis.negative))
    by_pole = {
        positive: projection.values[projection.positive].tolist(),
        negative: projection.values[~projection.positive].tolist(),
    }
    return DirectionPanel(
        target=axis.target, positive=positive, negative=negative, cell=axis.cell, estimates=(estimate,),
        shown=run.probe.name, positive_end=end(ends.positive), negative_end=end(ends.negative),
        histogram=make_histogram(by_pole),
        note=(
            f"{_sample_counts(projection, settings.group_by)} Intervals: 95 %, {settings.n_resamples:,} bootstrap "
            "resamples. The sign was fixed on the training split."
        ),
    )  # fmt: skip


def _sample_counts(projection: _Projection, group_by: str | None) -> str:
    """Return the number of samples behind an AUROC, and of independent groups among them."""
    text = f"{len(projection.keys):,} test samples of either pole"
    if group_by is None:
        return f"{text}."
    return (
        f"{text}, with {len(set(projection.groups)):,} values of '{group_by}': an end shows each value once "
        "and at most half of them, and intervals resample whole values."
    )
