"""The statistic of a table's entry from kept predictions, with the samples, groups and labels that it is of."""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SINGLE_SAMPLES, AnyStatistic, LabelStatistic, mean_statistic
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.aggregation import control_of
from diffprobe.runs.rescore import ScoredRun, load_run
from diffprobe.runs.rescore_forms import form_of, label_form_of
from diffprobe.runs.rescore_metrics import Scored, find_measure

Sources = Sequence[tuple[RunResult, MetricRecord]]
"""The results that an entry is the mean of, one per seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The samples that a statistic is of."""

    keys: tuple[str, ...]
    """The key of each."""
    group: str
    """Name of their group; `SINGLE_SAMPLES` where the data set names none."""
    clusters: tuple[Hashable, ...]
    """The group of each."""
    labels: NDArray[np.int64]
    """What should be predicted of each, int64 (samples,)."""
    classes: tuple[str, ...]
    """What the labels are the numbers of."""

    def equals(self, other: "Samples") -> bool:
        """Return whether both are the same samples of the same groups, with the same labels."""
        same = (self.keys, self.group, self.classes) == (other.keys, other.group, other.classes)
        return same and bool(np.array_equal(self.labels, other.labels))

    @property
    def unit(self) -> str:
        """What is resampled whole, in words."""
        return "single samples" if self.group == SINGLE_SAMPLES else f"values of '{self.group}'"


class KeptPredictions:
    """The predictions of runs, each read once.

    Args:
        folders: `id` of each result -> the folder that has its predictions.
    """

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self._folders = folders
        self._read: dict[tuple[int, str], ScoredRun] = {}
        self._scored: dict[tuple[int, str, int], tuple[Scored, Samples]] = {}
        self._measures: set[tuple[str, str]] = set()

    def of(self, result: RunResult, split: str) -> ScoredRun:
        """Return a run with its predictions of a split.

        Raises: RunFailed where they cannot be read; it names the run and no folder, on which no table depends.
        """
        key, folder = (id(result), split), self._folders[id(result)]
        if key not in self._read:
            try:
                self._read[key] = load_run(folder, split)
            except DiffprobeError as error:
                text = error.what.replace(f"{folder}{os.sep}", "")
                raise RunFailed(text if result.run in text else f"run '{result.run}': {text}") from error
        return self._read[key]

    def statistic(
        self, metric: str, sources: Sources, split: str, *, control: str | None = None
    ) -> tuple[AnyStatistic, Samples]:
        """Return the statistic of an entry on a split, the mean over its seeds, and its samples.

        Args:
            metric: the metric.
            sources: the results of the entry, whose records name cell, target and probe.
            split: "val" or "test".
            control: a control that was measured within the same runs ("shuffled_labels"), in place of the probe.

        Raises: RunFailed for predictions that are missing or of other samples; UnknownName for a metric that they do
            not give.
        """
        heads, samples = self._heads(metric, sources, split, control)
        return mean_statistic([form_of(one, metric, torch.arange(len(one.rows))) for one in heads]), samples

    def label_statistic(self, metric: str, sources: Sources, split: str) -> tuple[LabelStatistic, Samples]:
        """Return the statistic of an entry as a function of the labels, the mean over its seeds, and its samples.

        Raises: as `statistic`; ConfigError for predictions without labels.
        """
        heads, samples = self._heads(metric, sources, split, None)
        forms = [label_form_of(one, metric, torch.arange(len(one.rows))) for one in heads]
        if len(forms) == 1:
            return forms[0], samples
        return lambda labels: np.asarray(np.mean([form(labels) for form in forms], axis=0), dtype=np.float64), samples

    def _heads(self, metric: str, sources: Sources, split: str, control: str | None) -> tuple[list[Scored], Samples]:
        found: list[Scored] = []
        first: Samples | None = None
        for result, record in sources:
            scored, samples = self._head(result, record, split, control)
            if (scored.info.kind, metric) not in self._measures:
                find_measure(scored.info.kind, metric)  # it looks through the folder of metrics
                self._measures.add((scored.info.kind, metric))
            if first is not None and not first.equals(samples):
                raise RunFailed(f"the seeds of cell {record.cell} were not scored on the same samples of {split}")
            first = first or samples
            found.append(scored)
        if first is None:
            raise RunFailed("a cell without a result")
        return found, first

    def _head(self, result: RunResult, record: MetricRecord, split: str, control: str | None) -> tuple[Scored, Samples]:
        run = self.of(result, split)
        wanted = {"cell": record.cell, "target": record.target, "probe": record.probe, "control": control}
        own = control_of(result)
        if control is None and own is not None and any(head.control == own for head in run.predictions.heads):
            wanted["control"] = own
        (head, *others) = run.heads({name: value for name, value in wanted.items() if value is not None})
        if others:
            raise RunFailed(f"run '{result.run}' has {len(others) + 1} heads of {record.target} at {record.cell}")
        if control is not None and run.predictions.heads[head].draws != 1:
            raise RunFailed(f"run '{result.run}' has {run.predictions.heads[head].draws} draws of {control}")
        key = (id(result), split, head)
        if key not in self._scored:
            scored = Scored(run.predictions, head)
            self._scored[key] = scored, _samples(run, scored)
        return self._scored[key]


def _samples(run: ScoredRun, scored: Scored) -> Samples:
    predictions, info = run.predictions, scored.info
    keys = tuple(predictions.keys[i] for i in scored.rows.tolist())
    if info.target is None:
        classes: tuple[str, ...] = ()
    elif info.kind == "axis":
        names = predictions.values[info.target]
        ends = [", ".join(names[i] for i in ids) for ids in (info.negative_ids, info.positive_ids)]
        classes = tuple(ends)
    else:
        classes = predictions.values[info.target]
    group, clusters = SINGLE_SAMPLES, keys
    if predictions.group is not None:
        group = predictions.group
        ids = predictions.column(group)[scored.rows].tolist()
        if min(ids, default=0) < 0:
            raise RunFailed(f"run '{run.result.run}': {ids.count(-1)} samples have no value of the group '{group}'")
        clusters = tuple(predictions.values[group][i] for i in ids)
    return Samples(keys=keys, group=group, clusters=clusters, labels=scored.truth.numpy(), classes=classes)
