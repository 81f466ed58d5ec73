"""The score that stands for a run: chosen on val, read on test."""

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.metrics.headline import better_first, headline, is_higher_better
from tests.report.conftest import make_sae_run

CELLS = ("mid_block@t25:empty:mean", "mid_block@t200:empty:mean")


def record(value: float, split: str, cell: str = CELLS[0], name: str = "accuracy") -> MetricRecord:
    return MetricRecord(name=name, value=value, split=split, n=10, cell=cell, target="label", probe="linear")


def run(*records: MetricRecord) -> RunResult:
    result: RunResult = make_sae_run(0.0, metrics=records)
    return result


def test_the_headline_is_on_test_where_val_is_best() -> None:
    result = run(record(0.5, "val"), record(0.9, "test"), record(0.7, "val", CELLS[1]), record(0.4, "test", CELLS[1]))
    found = headline(result)
    assert found is not None and (found.split, found.cell, found.value) == ("test", CELLS[1], 0.4)
    assert headline(result, "fvu") is None
    only_val = headline(run(record(0.5, "val"), record(0.6, "val", CELLS[1])))
    assert only_val is not None and only_val.value == 0.6
    lowest = headline(run(record(0.2, "test", name="fvu"), record(0.1, "test", CELLS[1], "fvu")))
    assert lowest is not None and lowest.value == 0.1


def test_the_better_record_comes_first_whichever_end_is_better() -> None:
    assert better_first(record(0.9, "test")) < better_first(record(0.1, "test"))
    assert better_first(record(0.1, "test", name="fvu")) < better_first(record(0.9, "test", name="fvu"))


def test_the_better_end_of_metrics_inside_and_outside_of_the_registry() -> None:
    ends = {name: is_higher_better(name) for name in ("accuracy", "fvu", "auroc", "loss_recovered", "l0", "unknown")}
    assert ends == {
        "accuracy": True, "fvu": False, "auroc": True, "loss_recovered": True, "l0": None, "unknown": None,
    }  # fmt: skip
