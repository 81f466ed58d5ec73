"""The figure of `diffprobe score` has the points of its curves."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, RunResult, StartTime, make_result
from diffprobe.report.score_figure import accuracy_by_passes


def result(*records: MetricRecord) -> RunResult:
    return make_result(
        run="a", experiment="tiny/score", kind="score", config={}, seeds={"seed": 0}, metrics=list(records),
        started_at=StartTime.now(), artifacts={},
    )  # fmt: skip


def record(name: str, accuracies: list[float], chance: float) -> MetricRecord:
    points = [
        {"n_timesteps": 2**number, "passes": 10.0 * 2**number, "accuracy": value}
        for number, value in enumerate(accuracies)
    ]
    return MetricRecord(
        name=name, value=accuracies[-1], split="test", n=9, spread=0.1, controls={"chance": chance},
        detail={"curve": points},
    )  # fmt: skip


def test_each_question_is_a_line_with_its_chance() -> None:
    first, second = record("_one", [0.2, 0.5, 0.75], 0.1), record("two$x", [0.4, 0.5], 0.5)
    figure = accuracy_by_passes(result(first, second, MetricRecord(name="r5", value=1, split="test", n=9)))
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines}
    labels = [str(text.get_text()) for text in figure.axes[0].get_legend().get_texts()]
    assert [label.lstrip("\u200b") for label in labels] == [" one", "two$x", "chance"]
    points = drawn["\u200b one"]
    assert list(points.get_xdata()) == [10, 20, 40] and list(points.get_ydata()) == [0.2, 0.5, 0.75]
    levels = {
        float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata())
    }
    assert levels == {0.1, 0.5} and axes.get_xscale() == "log"


def test_a_result_without_curves_is_refused() -> None:
    with pytest.raises(ConfigError, match="'a'"):
        accuracy_by_passes(result(MetricRecord(name="r5", value=1, split="test", n=9)))
