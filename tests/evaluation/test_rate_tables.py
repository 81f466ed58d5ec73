"""The tables are made from the records alone, of one model or of twins side by side."""

import time

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.evaluation.rate_tables import rate_tables


def made(model, world, metrics):
    return make_result(
        run="x", experiment="x", kind="rates_eval", config={"model": model, "world": world}, seeds={}, metrics=metrics,
        started_at=StartTime(time.time(), 0.0),
    )  # fmt: skip


def record(name, value, target, **detail):
    return MetricRecord(name=name, value=value, split="generated", n=24, target=target, detail=detail)


def metrics(own, other, rate):
    planted = {own: 0.9, other: 0.25}
    return [
        record("rate", rate, "cook", interval=[0.8, 0.95], read=0.8, n_undefined=0, planted=planted),
        record("spearman", 0.95, own, own_world=True, interval=[0.9, 0.97]),
        record("coverage", 0.75, own, own_world=True, level=0.95),
        record("spearman", -0.5, other, own_world=False),
        record("coverage", 0.25, other, own_world=False, level=0.95),
        record("half_committed", 0.125, "texture", interval=[0.1, 0.15]),
        record("reader_agreement", 0.5, "a|b", interval=[0.4, 0.6]),
    ]


def test_twins_stand_side_by_side():
    first = made("scenes-sd", "planted", metrics("planted", "permuted", 0.88))
    second = made("twin", "permuted", metrics("permuted", "planted", 0.3))
    lines = rate_tables([first, second]).splitlines()
    assert lines[0] == "| model | rates of | spearman | slope | bias | max error | coverage |"
    for line in (
        "| scenes-sd | planted (its own) | 0.95 [0.90, 0.97] |  |  |  | 0.75 |",
        "| scenes-sd | permuted | -0.50 |  |  |  | 0.25 |",
        "| twin | permuted (its own) | 0.95 [0.90, 0.97] |  |  |  | 0.75 |",
        "| twin | 0.12 [0.10, 0.15] |  |  |  |",
        "| reader agrees with labels | a&#124;b |",
        "| role | planted, planted | scenes-sd | planted, permuted | twin |",
        "| cook | 0.90 | 0.88 [0.80, 0.95] | 0.90 | 0.30 [0.80, 0.95] |",
    ):
        assert line in lines, line


def test_two_results_of_one_model_are_refused():
    one = made("scenes-sd", "planted", metrics("planted", "permuted", 0.88))
    with pytest.raises(ConfigError, match="scenes-sd, scenes-sd"):
        rate_tables([one, one])
