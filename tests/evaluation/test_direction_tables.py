"""Tables of a result of `eval directions`."""

from diffprobe.core.result import RunResult, StartTime, make_result
from diffprobe.evaluation.direction_tables import direction_tables, summary_lines
from tests.evaluation.test_direction_records import comparisons, records_of


def result() -> RunResult:
    config = {"model": "tiny", "alpha": 0.05, "least_agreement": 0.8, "least_split_half": 0.5}
    return make_result(
        run="r", experiment="e", kind="directions_eval", config=config, seeds={"seed": 0},
        metrics=records_of(comparisons()), started_at=StartTime.now(),
    )  # fmt: skip


def test_factors_and_taps_are_rows_and_timesteps_columns() -> None:
    text = direction_tables(result())
    assert text.count("| factor | tap | t = 9 | t = 99 |") == 5
    conditional, reread = (text.partition(f"Agreement, {name}")[2] for name in ("conditional", "re-read"))
    assert "| side | mid_block | 0.90 [0.80, 1.00] | 0.50 [0.40, 0.60] |" in conditional.partition("re-read")[0]
    assert "| side | mid_block | 0.95 [0.85, 1.05] | (0.99 [0.89, 1.09]) |" in reread  # no direction to agree with
    assert "| colour | mid_block | 0.95 [0.85, 1.05]* | not defined |" in conditional
    assert "| side | mid_block | 0.75 / 0.75 | 0.75 / 0.75 |" in text
    assert "| side | mid_block | 0.90; 0.60 / 0.60 | 0.90; 0.60 / 0.60 |" in text
    assert "| side | mid_block | 0.90, 0.70 / 0.95, 0.75 | 0.50, 0.30 / 0.99, 0.79 |" in text
    assert "A seed varies the noise" in text and "Not applicable: build: not captioned." in text


def test_the_summary_has_counts_and_baselines() -> None:
    lines = summary_lines(result())
    (side,) = (line for line in lines if line.startswith("side: a against b") and "re-read" in line)
    assert side.split("re-read")[1].split() == ["1", "of", "1", "1", "0.95", "0.75", "0.70", "[0.60,", "0.80]", "not",
                                               "defined"]  # fmt: skip
    assert lines[-1].startswith("Not applicable: text encoder")
