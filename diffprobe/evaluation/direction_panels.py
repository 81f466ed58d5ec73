"""The directions of finished runs on a page: AUROC of every estimator with interval and controls, ends, histogram.

Everything shown is of the test split. The sign of a direction is fixed on the training split.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffprobe.analysis.direction_extremes import ExtremeSample, direction_extremes
from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.core.errors import ConfigError, DiffprobeError, EmptyClass, SchemaError, WeightsMissing
from diffprobe.core.result import BACKBONE, SHARDS, MetricRecord, RunResult
from diffprobe.evaluation.page_features import PageFeatures, open_features
from diffprobe.evaluation.panel_settings import PanelConfig
from diffprobe.evaluation.pictures import PictureLoader, Shown
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.features.batch import FeatureTable
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.direction import ContrastPair, Direction
from diffprobe.report.pages.panels import DirectionPanel, Estimate, Picture, make_histogram
from diffprobe.runs.plan import plan
from diffprobe.training.kinds.types import target_classes

OpenFeatures = Callable[[ProbeRun], PageFeatures | None]
"""Opens the features of a run; None where they are not at hand."""


def direction_panels(
    runs: Sequence[ProbeRun],
    settings: PanelConfig,
    *,
    names: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    opener: OpenFeatures = open_features,
    leave_out: Callable[[str], None] | None = None,
) -> tuple[DirectionPanel, ...]:
    """Describe each direction: estimates of one target, poles, cell, backbone and data set share a panel.

    Ends and histogram are those of the first run of a panel.

    Args:
        runs: finished runs, controls among them; those of other kinds are passed over.
        settings: how many samples, what groups them, and how many resamples.
        names: name of a run -> its name on the page, for several estimates of one estimator.
        sources: name of a run -> what its features were read from, where a page shows several.
        opener: opens the features of a run; None where they are not at hand: then its panel has the numbers of
            the result alone.
        leave_out: takes a sentence for each direction that the test samples are too few for; None raises.
    Raises: EmptyClass, ConfigError for too few test samples of a pole or too few groups.
    """
    panels: dict[tuple[str | None, ...], DirectionPanel] = {}
    directions = [run for run in runs if run.result.kind == "direction"]
    for run in directions:
        if run.control != "none":
            continue
        try:
            records = _test_records(run.result, run.config.data.test_split)
        except EmptyClass as error:
            if leave_out is None:
                raise
            leave_out(error.what)
            continue
        opened = _Opened(run, opener(run))
        for record in records:
            try:
                projection = opened.project(record, settings)
                estimate = _estimate(directions, run, record, projection, settings.n_resamples)
                poles = (str(record.detail.get("positive")), str(record.detail.get("negative")))
                inputs = (run.result.artifacts.get(SHARDS), run.result.artifacts.get(BACKBONE))
                key = (record.target, record.cell, *poles, *inputs)
                if key in panels:
                    panels[key] = _with_estimate(
                        panels[key], estimate, (names or {}).get(run.result.run, run.result.run)
                    )
                else:
                    source = (sources or {}).get(run.result.run, "")
                    panels[key] = _panel(record, estimate, projection, opened, settings, source)
            except (EmptyClass, ConfigError) as error:
                if leave_out is None:
                    raise
                leave_out(f"The direction '{record.target}' ({run.config.probe.name}) is not shown: {error.what}")
    return tuple(panels.values())


def _test_records(result: RunResult, split: str) -> list[MetricRecord]:
    """Return the AUROC of each direction. Raises: EmptyClass for a run without one."""
    found = [record for record in result.metrics if (record.name, record.split) == ("auroc", split)]
    if not found:
        raise EmptyClass(f"the run '{result.run}' has no test AUROC.", fix="remove its folder and train it again")
    return found


class _Opened:
    """The features of one run, its axes by target and cell, and the test samples."""

    def __init__(self, run: ProbeRun, source: PageFeatures | None) -> None:
        self._run, self._source = run, source
        self._axes: dict[tuple[str, str], ContrastPair] = {}
        self._table: FeatureTable | None = None
        self.missing = "" if source is not None else "The features are not at hand"
        """What is not at hand; empty where all is."""
        if source is not None:
            classes = target_classes(run.config.probe.targets, source)
            axes = plan(run.config).params.axes(list(source.widths), classes)
            self._axes = {(axis.target, axis.cell): axis for axis in axes}
            self._table = source.table(run.config.data.test_split)

    def project(self, record: MetricRecord, settings: PanelConfig) -> "_Projection | None":
        """Return the projections on the direction of a record; None without its features or its file."""
        if self._source is None or self._table is None:
            return None
        axis = self._axes[str(record.target), str(record.cell)]
        try:
            group_by = settings.group(self._source.group)
            return _Projection(self._run, axis, self._table, self._source.attributes, group_by)
        except (WeightsMissing, SchemaError, OSError) as error:
            self.missing = (
                f"The direction is not at hand ({error.what if isinstance(error, DiffprobeError) else error})"
            )
            return None

    def loader(self, settings: PanelConfig) -> PictureLoader | None:
        """Return the loader of pictures; None without features."""
        if self._source is None or self._table is None:
            return None
        return PictureLoader(self._source, self._table, settings.picture_side)


class _Projection:
    """The test samples of both poles of one axis, projected onto its direction."""

    def __init__(
        self,
        run: ProbeRun,
        axis: ContrastPair,
        table: FeatureTable,
        attributes: Mapping[str, Sequence[str]],
        group_by: str | None,
    ) -> None:
        direction = Direction.load(run.folder / "probes" / axis.target / axis.cell.replace(":", "."))
        side = axis.side(table.label if axis.target == "label" else table.attributes[axis.target])
        rows = (side >= 0).nonzero().squeeze(1)
        self.positive = side[rows] == 1
        self.values = direction.project(table.features[axis.cell][rows])
        self.keys = [table.keys[row] for row in rows.tolist()]
        self.captions = [table.captions[row] for row in rows.tolist()]
        self.groups = self.keys
        self.group_by = group_by
        """Attribute that groups the samples; None for single samples."""
        if group_by is not None:
            values = table.attributes[group_by][rows].tolist()
            names = attributes[group_by]
            self.groups = [names[v] if v >= 0 else key for v, key in zip(values, self.keys, strict=True)]
        self.seed = run.config.seed

    def interval(self, n_resamples: int) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the AUROC; whole groups are resampled."""

        def area(rows: object) -> float:
            chosen = torch.as_tensor(rows)
            return float(auroc(self.values[chosen, None], self.positive[chosen]))

        found = bootstrap_interval(area, self.groups, n_resamples=n_resamples, seed=self.seed)
        return found.low, found.high


def _estimate(
    directions: Sequence[ProbeRun],
    run: ProbeRun,
    record: MetricRecord,
    projection: _Projection | None,
    n_resamples: int,
) -> Estimate:
    """Return the estimate of a record with its interval, and with the controls that were runs of their own."""
    found: dict[str, Any] = {}
    for control in ("random_weights", "raw_pixels"):
        values = [
            other.value
            for control_run in directions
            if control_run.control == control and control_run.is_control_of(run)
            for other in control_run.result.metrics
            if (other.name, other.split, other.target, other.probe)
            == (record.name, record.split, record.target, record.probe)
            and (control == "raw_pixels" or other.cell == record.cell)
        ]
        if values:
            found[control] = statistics.fmean(values)  # over seeds
    if projection is not None:
        found["interval"] = projection.interval(n_resamples)
    return replace(Estimate.from_record(record), **found)


def _with_estimate(panel: DirectionPanel, estimate: Estimate, name: str) -> DirectionPanel:
    """Return a panel with one more estimate; a second one of an estimator is called by its run."""
    known = {one.estimator for one in panel.estimates}
    if estimate.estimator in known:
        estimate = replace(estimate, estimator=f"{estimate.estimator}, {name}")
    return replace(panel, estimates=(*panel.estimates, estimate))


def _panel(
    record: MetricRecord,
    estimate: Estimate,
    projection: _Projection | None,
    opened: _Opened,
    settings: PanelConfig,
    source: str,
) -> DirectionPanel:
    positive, negative = (_pole(record.detail.get(name)) for name in ("positive", "negative"))
    common: dict[str, Any] = {
        "target": str(record.target), "positive": positive, "negative": negative, "cell": str(record.cell),
        "estimates": (estimate,), "shown": estimate.estimator, "source": source,
    }  # fmt: skip
    loader = opened.loader(settings)
    if projection is None or loader is None:
        note = f"{opened.missing}: neither an interval nor the projections are shown."
        return DirectionPanel(**common, positive_end=(), negative_end=(), note=note)
    ends = direction_extremes(
        projection.values, projection.keys, projection.captions, n_each=settings.n_ends, group_by=projection.groups
    )
    samples = (*ends.positive, *ends.negative)
    pictures = loader.load([Shown(sample.key, sample.projection) for sample in samples])

    def end(samples: Sequence[ExtremeSample]) -> tuple[Picture, ...]:
        return tuple(
            pictures.get(
                Shown(sample.key, sample.projection),
                Picture(data=b"", caption=sample.caption, key=sample.key, value=sample.projection),
            )
            for sample in samples
        )

    by_pole = {
        positive: projection.values[projection.positive].tolist(),
        negative: projection.values[~projection.positive].tolist(),
    }
    note = (
        f"{_sample_counts(projection)} Intervals: 95 %, {settings.n_resamples:,} bootstrap "
        "resamples. The sign was fixed on the training split."
    )
    if loader.missing:
        note += f" No pictures are shown, since the images are not at hand: {loader.missing}"
    return DirectionPanel(
        **common, positive_end=end(ends.positive), negative_end=end(ends.negative),
        histogram=make_histogram(by_pole), note=note,
    )  # fmt: skip


def _pole(value: object) -> str:
    return " or ".join(str(value).split("|"))


def _sample_counts(projection: _Projection) -> str:
    """Return the number of samples behind an AUROC, and of independent groups among them."""
    text = f"{len(projection.keys):,} test samples of either pole"
    if projection.group_by is None:
        return f"{text}."
    return (
        f"{text}, with {len(set(projection.groups)):,} values of '{projection.group_by}': an end shows each value once "
        "and at most half of them, and intervals resample whole values."
    )
