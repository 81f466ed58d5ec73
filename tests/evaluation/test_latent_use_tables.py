"""Records, table, figure and console lines of `eval latents`, of latents whose numbers are known."""

import csv
import io
from dataclasses import replace

import pytest

from diffprobe.analysis.latents.use import LatentUse
from diffprobe.analysis.statistics import Interval
from diffprobe.core.result import MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.latent_use_reading import Reading
from diffprobe.evaluation.latent_use_tables import (
    CORRELATION,
    FIGURE_FILE,
    RATE_CHANGE,
    TABLE_FILE,
    latents_csv,
    summary_lines,
    summary_records,
    write_tables,
)

CONTEXT = {"cell": "mid_block@t20:empty:none", "split": "test", "probe": "topk", "n_samples": 50, "mse": 0.5}


def interval(value: float) -> Interval:
    return Interval(
        estimate=value, low=value - 0.01, high=value + 0.01, level=0.95, n_clusters=50, n_resamples=9, n_undefined=0
    )


def use(latent: int, rise: float | None, q: float | None = None) -> LatentUse:
    if rise is None:
        return LatentUse(
            latent=latent, n_active=0, n_groups=0, delta=None, relative=None, delta_active=None, controls={}, above={},
            p=None,
        )  # fmt: skip
    return LatentUse(
        latent=latent, n_active=25, n_groups=20, delta=interval(rise), relative=interval(2 * rise),
        delta_active=2 * rise, controls={"random_direction": 0.1}, above={"random_direction": interval(rise - 0.1)},
        p=q, q=q,
    )  # fmt: skip


FOUND = [use(0, 0.4, 0.01), use(1, 0.2, 0.04), use(2, None), use(3, -0.1, 1.0), use(4, 0.3, 0.02)]
READING = Reading(
    auroc=(0.9, 0.5, None, 0.8, 0.7), auroc_q=(0.001, 0.9, None, 0.01, 0.2),
    best_values=("style=oil", "=HYPERLINK(1)", "", "style=ink", ""), n=80, notes=(),
)  # fmt: skip


def rate(latent: int) -> MetricRecord:
    return MetricRecord(
        name=RATE_CHANGE, value=-0.25, split="test", n=16, cell=CONTEXT["cell"], target="style=oil", probe="topk",
        controls={"untouched": 0.75, "random_direction": 0.0}, detail={"latent": latent, "interval": [-0.5, 0.0]},
    )  # fmt: skip


def test_records_count_what_is_used_among_what_is_read() -> None:
    found = {record.name: record for record in summary_records(FOUND, READING, CONTEXT, seed=0)}
    assert found["used_share"].value == 3 / 4 and found["used_share"].n == 50
    assert found["used_share"].detail["n_never_active"] == 1 and "n_samples" not in found["used_share"].detail
    assert found["read_share"].value == 2 / 4 and found["read_share"].n == 80
    assert found["used_share_of_read"].value == 1 / 2 and found["used_share_of_others"].value == 1.0
    assert found["median_relative_delta_mse"].value == pytest.approx(0.5)
    assert found["median_relative_delta_mse"].controls == {"random_direction": pytest.approx(0.2)}
    assert found[CORRELATION].detail["n_compared"] == 4 and -1 <= found[CORRELATION].value <= 1


def test_without_a_latent_that_fires_only_that_is_recorded() -> None:
    (record,) = summary_records([use(0, None), use(1, None)], READING, CONTEXT, seed=0)
    assert (record.name, record.value) == ("n_never_active", 2.0)


def test_a_latent_is_a_row_and_what_was_not_measured_is_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(latents_csv(FOUND, READING))))
    assert [row["latent"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[0]["read_auroc"] == "0.9" and rows[0]["reads"] == "style=oil" and rows[0]["used"] == "1"
    assert (rows[0]["delta_mse"], rows[0]["relative_delta_mse"], rows[0]["use_q"]) == ("0.4", "0.8", "0.01")
    assert (rows[0]["random_direction"], rows[0]["above_random_direction"]) == ("0.1", "0.3")
    assert rows[1]["reads"] == "'=HYPERLINK(1)"  # text, not a formula
    assert {value for name, value in rows[2].items() if name not in ("latent", "active_images", "active_groups")} == {
        ""
    }
    assert "rate_of" not in rows[0]
    # columns of the explorer: none of them may have a name that the explorer gives itself
    assert not set(rows[0]) & {"n_active", "frequency", "auroc", "auroc_q", "purity"}


def test_a_latent_without_an_auroc_shows_no_value_that_was_chosen_on_train() -> None:
    chosen = replace(READING, best_values=("style=oil", "style=ink", "style=oil", "style=ink", "style=oil"),
                     auroc=(0.9, None, None, 0.8, 0.7), auroc_q=(0.001, None, None, 0.01, 0.2))  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(latents_csv(FOUND, chosen))))
    assert [row["reads"] for row in rows] == ["style=oil", "", "", "style=ink", "style=oil"]
    assert [row["read_auroc"] for row in rows] == ["0.9", "", "", "0.8", "0.7"]
    assert rows[1]["delta_mse"] == "0.2"  # its use was measured on samples on which it is active


def test_rates_of_generated_images_are_columns_of_their_latents() -> None:
    rows = list(csv.DictReader(io.StringIO(latents_csv(FOUND, READING, {3: rate(3)}))))
    assert (rows[3]["rate_of"], rows[3]["rate_untouched"], rows[3]["rate_change"]) == ("style=oil", "0.75", "-0.25")
    assert (rows[3]["rate_change_low"], rows[3]["rate_change_random_direction"]) == ("-0.5", "0")
    assert rows[0]["rate_of"] == rows[0]["rate_change"] == ""


def test_console_lines_have_the_largest_rises_first(tmp_path) -> None:
    records = [*summary_records(FOUND, READING, CONTEXT, seed=0), rate(3)]
    write_tables(tmp_path, FOUND, READING, {3: rate(3)})
    result = make_result(
        run="r", experiment="e", kind="latent_use", config={}, seeds={}, metrics=records, started_at=StartTime.now()
    )  # fmt: skip
    write_result(result, tmp_path / "result.json")
    assert (tmp_path / FIGURE_FILE).stat().st_size > 1000 and (tmp_path / TABLE_FILE).exists()
    lines = summary_lines(tmp_path / "result.json")
    assert any(line.startswith("1 of 5 latents are never active") for line in lines)
    assert any(line.startswith("latent 3: test rate_change = -0.25 [-0.5, 0]") for line in lines)
    head = next(number for number, line in enumerate(lines) if line.lstrip().startswith("latent  reads"))
    assert [line.split()[0] for line in lines[head + 1 :]] == ["0", "4", "1", "3"]
    assert lines[head + 1].split()[-1] == "yes" and lines[-1].split()[-1] == "no"
    assert lines[head + 1].split()[1:4] == ["style=oil", "0.900", "25"]
    assert lines[head + 1].split()[-3] == "+2.00e-01"  # the control, relative to the untouched error


def test_without_a_reading_there_is_no_figure(tmp_path) -> None:
    none = Reading(auroc=(None,) * 5, auroc_q=(None,) * 5, best_values=("",) * 5, n=0, notes=("No reading.",))
    write_tables(tmp_path, FOUND, none, {})
    assert not (tmp_path / FIGURE_FILE).exists()
    names = [record.name for record in summary_records(FOUND, none, CONTEXT, seed=0)]
    assert names == ["used_share", "median_relative_delta_mse"]
