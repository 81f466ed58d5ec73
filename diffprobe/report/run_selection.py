"""Choose among runs and compare them: filters, the best records of a metric, what runs differ in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffprobe.core.errors import ConfigError, RunFailed, nearest
from diffprobe.core.flat_tree import flatten
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.metrics.headline import is_higher_better, place_of, place_text
from diffprobe.report.query import matches
from diffprobe.report.run_index import IndexedRun

_RUN_FIELDS = ("run", "experiment", "kind", "git_commit")
"""Conditions on these fields, and on `config.KEY`, are about a run; all others are about its records."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One record of a metric, as a place in a ranking."""

    run: IndexedRun
    """The run."""
    record: MetricRecord
    """The record by which it is ranked."""
    test: MetricRecord | None
    """The record of the same probe, cell and target on test; None if it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One name with its values in all compared runs, in their order."""

    name: str
    """Setting, input, version, or metric."""
    values: tuple[Any, ...]
    """Its value in each run; None where a run does not have it."""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What two or more runs differ in."""

    runs: tuple[IndexedRun, ...]
    """The runs, in the order asked for."""
    settings: tuple[Difference, ...]
    """Settings that differ, seeds included."""
    inputs: tuple[Difference, ...]
    """Inputs (data, weights, store), code and versions that differ."""
    metrics: tuple[Difference, ...]
    """All metrics of the runs, whether they differ or not."""


def select_runs(runs: Iterable[IndexedRun], where: Mapping[str, Any]) -> list[IndexedRun]:
    """Return the runs that match all conditions; a condition on records holds if one record matches all of these.

    Args:
        where: field -> value or list of values, as `report.query` has them.

    Raises: ConfigError for an unknown field.
    """
    of_run = {name: value for name, value in where.items() if name in _RUN_FIELDS or name.startswith("config.")}
    of_record = {name: value for name, value in where.items() if name not in of_run}
    empty = MetricRecord(name="none", value=0.0, split="none", n=0)
    found = []
    for run in runs:
        if not matches(run.result, empty, of_run):
            continue
        if not of_record or any(matches(run.result, record, of_record) for record in run.result.metrics):
            found.append(run)
    return found


def rank(
    runs: Sequence[IndexedRun],
    metric: str,
    *,
    split: str = "val",
    where: Mapping[str, Any] | None = None,
    higher_is_better: bool | None = None,
) -> list[Candidate]:
    """Rank all records of a metric, the best first; equal ones by path and cell.

    Args:
        metric: name of the metric.
        split: where it was measured; selection on test would make the best test value a biased one.
        where: conditions on the runs and their records.
        higher_is_better: None takes what the metric's file states.

    Raises: RunFailed if no record matches; ConfigError if it is not known which end of the metric is better.
    """
    where = dict(where or {})
    higher = is_higher_better(metric) if higher_is_better is None else higher_is_better
    found = []
    for run in runs:
        records = [record for record in run.result.metrics if record.name == metric]
        tests = {place_of(record): record for record in records if record.split == "test"}
        found += [
            Candidate(run=run, record=record, test=tests.get(place_of(record)))
            for record in records
            if record.split == split and matches(run.result, record, where)
        ]
    if not found:
        raise _nothing(runs, metric, split)
    if higher is None:
        raise ConfigError(
            f"it is not known which values of '{metric}' are better.", fix="--order highest, or --order lowest"
        )
    return sorted(
        found, key=lambda c: (-c.record.value if higher else c.record.value, c.run.path, str(place_of(c.record)))
    )


def compare_runs(runs: Sequence[IndexedRun]) -> RunComparison:
    """Compare runs: their settings, inputs and metrics."""
    configs = [flatten(run.result.config) for run in runs]
    inputs = [_inputs(run.result) for run in runs]
    metrics = [{record_name(record): record.value for record in run.result.metrics} for run in runs]
    return RunComparison(
        runs=tuple(runs),
        settings=_differing(configs),
        inputs=_differing(inputs),
        metrics=tuple(
            Difference(name=name, values=tuple(values.get(name) for values in metrics))
            for name in dict.fromkeys(name for values in metrics for name in values)
        ),
    )


def record_name(record: MetricRecord) -> str:
    """Return the name of a record within its run: metric, split, cell, target and probe."""
    place = place_text(record)
    return f"{record.name} ({record.split}{f', {place}' if place else ''})"


def _inputs(result: RunResult) -> dict[str, Any]:
    versions = {f"version of {name}": version for name, version in result.versions.items()}
    inputs = {name: digest for name, digest in result.artifacts.items() if name.startswith("input/")}
    return {**inputs, "git commit": result.git_commit, **versions}


def _differing(trees: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    names = sorted({name for tree in trees for name in tree})
    rows = [Difference(name=name, values=tuple(tree.get(name) for tree in trees)) for name in names]
    return tuple(row for row in rows if any(value != row.values[0] for value in row.values))


def _nothing(runs: Sequence[IndexedRun], metric: str, split: str) -> RunFailed:
    splits = {record.split for run in runs for record in run.result.metrics if record.name == metric}
    if splits and split not in splits:
        return RunFailed(
            f"no run has '{metric}' on {split}.",
            f"measured on: {', '.join(sorted(splits))}",
            fix=f"--split {sorted(splits)[0]}",
        )
    names = sorted({record.name for run in runs for record in run.result.metrics})
    close = nearest(metric, names)
    return RunFailed(
        f"no record of '{metric}' on {split} matches.",
        *([f"nearest: {', '.join(close)}"] if close else []),
        f"metrics of these runs: {', '.join(names) or '(none)'}",
        fix="another metric, or fewer conditions (--where)",
    )
