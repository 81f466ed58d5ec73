"""Filters, rankings and comparisons of runs, on runs with known numbers."""

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.run_index import IndexedRun
from diffprobe.report.run_selection import compare_runs, rank, select_runs
from tests.report.conftest import make_sae_run

CELLS = ("mid_block@t25:empty:mean", "mid_block@t200:empty:mean")


def record(value: float, split: str, cell: str = CELLS[0], name: str = "accuracy") -> MetricRecord:
    return MetricRecord(name=name, value=value, split=split, n=10, cell=cell, target="label", probe="linear")


def run(path: str, *records: MetricRecord, **changes: object) -> IndexedRun:
    result: RunResult = make_sae_run(0.0, run=path, kind="classifier", metrics=records, **changes)
    return IndexedRun(path=path, result=result)


@pytest.fixture
def runs() -> list[IndexedRun]:
    return [
        run(
            "a", record(0.5, "val"), record(0.9, "test"), record(0.7, "val", CELLS[1]), record(0.4, "test", CELLS[1]),
            config={"seed": 0, "probe": {"k": 4}}, artifacts={"input/store": "1"},
        ),
        run("b", record(0.6, "val"), record(0.3, "test"), config={"seed": 0, "probe": {"k": 8}}),
        run("c", record(0.2, "test", name="fvu"), config={"seed": 1}, experiment="other/x"),
    ]  # fmt: skip


def test_the_best_is_chosen_on_val_and_its_test_value_stands_beside(runs: list[IndexedRun]) -> None:
    found = rank(runs, "accuracy")
    assert [(c.run.path, c.record.cell, c.record.value) for c in found] == [
        ("a", CELLS[1], 0.7), ("b", CELLS[0], 0.6), ("a", CELLS[0], 0.5),
    ]  # fmt: skip
    assert [c.test.value for c in found if c.test] == [0.4, 0.3, 0.9]
    assert rank(runs, "accuracy", split="test")[0].record.value == 0.9
    assert rank(runs, "accuracy", higher_is_better=False)[0].record.value == 0.5


def test_conditions_apply_to_runs_and_records(runs: list[IndexedRun]) -> None:
    assert [c.run.path for c in rank(runs, "accuracy", where={"config.probe.k": 8})] == ["b"]
    assert [c.record.value for c in rank(runs, "accuracy", where={"timestep": 25})] == [0.6, 0.5]
    assert [r.path for r in select_runs(runs, {"experiment": "other"})] == ["c"]
    assert [r.path for r in select_runs(runs, {"metric": "accuracy", "timestep": 200})] == ["a"]
    assert [r.path for r in select_runs(runs, {"config.seed": [0, 1]})] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="colour"):
        select_runs(runs, {"colour": "red"})


def test_a_metric_that_is_smaller_when_better_is_ranked_so() -> None:
    runs = [run("a", record(0.3, "val", name="fvu")), run("b", record(0.1, "val", name="fvu"))]
    assert [c.run.path for c in rank(runs, "fvu")] == ["b", "a"]


def test_what_cannot_be_ranked_is_an_error(runs: list[IndexedRun]) -> None:
    with pytest.raises(RunFailed, match=r"(?s)accuracyy.*nearest: accuracy"):
        rank(runs, "accuracyy")
    with pytest.raises(RunFailed, match=r"(?s)'fvu' on val.*measured on: test"):
        rank(runs, "fvu")
    unknown = [run("a", record(0.3, "val", name="colourfulness"))]
    with pytest.raises(ConfigError, match=r"(?s)colourfulness.*--order highest"):
        rank(unknown, "colourfulness")
    assert rank(unknown, "colourfulness", higher_is_better=True)[0].record.value == 0.3


def test_a_comparison_lists_what_differs_and_all_metrics(runs: list[IndexedRun]) -> None:
    found = compare_runs(runs[:2])
    assert [(row.name, row.values) for row in found.settings] == [("probe.k", (4, 8))]
    assert [(row.name, row.values) for row in found.inputs] == [("input/store", ("1", None))]
    assert [row.values for row in found.metrics] == [(0.5, 0.6), (0.9, 0.3), (0.7, None), (0.4, None)]
