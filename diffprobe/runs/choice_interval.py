"""The interval of a chosen cell on test, from kept predictions: each resample of the groups chooses again on val."""

import os
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from diffprobe.analysis.statistics import SINGLE_SAMPLES, AnyStatistic, mean_statistic, selected_interval
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.result import RunResult
from diffprobe.report.filled_table import ChoiceInterval, ChosenCell, Entry, TableData
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.rescore import ScoredRun, load_run
from diffprobe.runs.rescore_forms import form_of
from diffprobe.runs.rescore_metrics import Scored, find_measure

N_RESAMPLES = 1000
"""Number of resamples."""


def with_intervals(table: TableData, folders: Mapping[int, Path]) -> TableData:
    """Add the interval of the score on test to each chosen cell of a table; where there is none, the reason.

    Args:
        table: the table.
        folders: `id` of each result -> the folder that has its predictions.
    """
    predictions = _Predictions(folders)
    return replace(table, chosen=tuple(_with_interval(table.spec, one, predictions) for one in table.chosen))


def _with_interval(spec: TableSpec, chosen: ChosenCell, predictions: "_Predictions") -> ChosenCell:
    try:
        return replace(chosen, interval=_interval(spec, chosen, predictions), no_interval="")
    except (DiffprobeError, OSError) as error:
        text = error.what if isinstance(error, DiffprobeError) else str(error)
        return replace(chosen, interval=None, no_interval=text.rstrip("."))


def _interval(spec: TableSpec, chosen: ChosenCell, predictions: "_Predictions") -> ChoiceInterval:
    sides: dict[str, tuple[list[AnyStatistic], list[Hashable]]] = {}
    unit = ""
    for split in ("val", "test"):
        found = [_of_entry(spec, entry, split, predictions) for entry in chosen.candidates]
        _, samples, group, clusters = found[0]
        for entry, (_, others, other_group, _) in zip(chosen.candidates, found, strict=True):
            if others != samples or other_group != group:
                raise RunFailed(
                    f"cells {chosen.candidates[0].cell} and {entry.cell} were not scored on the same samples of {split}"
                )
        if unit and group != unit:
            raise RunFailed(f"val has the groups '{unit}', test the groups '{group}'")
        unit, sides[split] = group, ([statistic for statistic, *_ in found], clusters)
    selected = selected_interval(
        *sides["val"], *sides["test"], higher_is_better=spec.higher_is_better, n_resamples=N_RESAMPLES
    )
    if chosen.candidates[selected.chosen] is not chosen.val:
        raise RunFailed(
            f"the kept predictions of val choose {chosen.candidates[selected.chosen].cell} by a difference that is "
            "within their rounding"
        )
    interval = selected.interval
    return ChoiceInterval(
        low=interval.low, high=interval.high, level=interval.level, n_resamples=interval.n_resamples,
        unit="single samples" if unit == SINGLE_SAMPLES else f"values of '{unit}'", n_groups=interval.n_clusters,
        optimism=selected.optimism if spec.higher_is_better else -selected.optimism,
        share=selected.shares[selected.chosen],
    )  # fmt: skip


Found = tuple[AnyStatistic, list[str], str, list[Hashable]]
"""The statistic of a cell, its samples, the name of their group, and the group of each."""


def _of_entry(spec: TableSpec, entry: Entry, split: str, predictions: "_Predictions") -> Found:
    """Return the statistic of a cell on a split: the mean over its seeds."""
    statistics: list[AnyStatistic] = []
    first: tuple[list[str], str, list[Hashable]] | None = None
    for result, record in entry.sources:
        run = predictions.of(result, split)
        wanted = {"cell": record.cell, "target": record.target, "probe": record.probe}
        (head, *others) = run.heads({name: value for name, value in wanted.items() if value is not None})
        if others:
            raise RunFailed(f"run '{result.run}' has {len(others) + 1} heads of {record.target} at {record.cell}")
        scored = Scored(run.predictions, head)
        find_measure(scored.info.kind, spec.metric)
        statistics.append(form_of(scored, spec.metric, torch.arange(len(scored.rows))))
        samples = [run.predictions.keys[i] for i in scored.rows.tolist()]
        group, clusters = _clusters(run, scored, samples)
        if first is not None and first[:2] != (samples, group):
            raise RunFailed(f"the seeds of cell {record.cell} were not scored on the same samples of {split}")
        first = first or (samples, group, clusters)
    if first is None:
        raise RunFailed("a cell without a result")
    return mean_statistic(statistics), *first


def _clusters(run: ScoredRun, scored: Scored, samples: list[str]) -> tuple[str, list[Hashable]]:
    """Return the name of the group of a run's data set, and the group of each sample by its name."""
    name = run.predictions.group
    if name is None:
        return SINGLE_SAMPLES, list(samples)
    ids = run.predictions.column(name)[scored.rows].tolist()
    if min(ids, default=0) < 0:
        raise RunFailed(f"run '{run.result.run}': {ids.count(-1)} samples have no value of the group '{name}'")
    return name, [run.predictions.values[name][i] for i in ids]


class _Predictions:
    """The predictions of runs, each read once."""

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self._folders = folders
        self._read: dict[tuple[int, str], ScoredRun] = {}

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
