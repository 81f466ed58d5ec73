"""The terminal table of `diffprobe score`."""

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.report.score_table import terminal_lines


def test_a_row_has_value_spread_interval_cost_and_controls() -> None:
    detail = {
        "interval": [0.5, 0.7], "passes_per_image": 1234.5,
        "curve": [{"n_timesteps": 1.0, "passes": 10.0, "accuracy": 0.25}],
    }  # fmt: skip
    controls = {"chance": 0.1}
    records = [
        MetricRecord(
            name="caption_of_10_accuracy", value=0.6, split="test", n=20, spread=0.02, n_seeds=2, controls=controls,
            detail=detail,
        ),
        MetricRecord(name="other", value=0.1, split="test", n=2, detail={"passes_per_image": 3.0}),
        MetricRecord(name="overlap", value=0.9, split="test", n=2, detail={"passes_per_image": 3.0, "classes": ["a"]}),
        MetricRecord(
            name="link", value=0.5, split="test", n=2, detail={"passes_per_image": 0.0, "interval": [0.0, 1], "p": 0.25}
        ),
    ]  # fmt: skip
    result = make_result(
        run="r", experiment="e", kind="score", config={}, seeds={}, metrics=records, started_at=StartTime.now(),
        artifacts={},
    )  # fmt: skip
    lines = terminal_lines(result)
    assert lines[1].split() == ["caption_of_10_accuracy", "20", "0.600", "0.020", "0.500", "to", "0.700", "1,234.5",
                                "chance", "0.100"]  # fmt: skip
    assert lines[3].split() == ["overlap", "2", "0.900", "3.0"] and "0.000 to 1.000 (p 0.250)" in lines[4]
    assert "(one group)" in lines[2] and lines[-1].split() == ["1", "timesteps", "10.0", "0.250"]
