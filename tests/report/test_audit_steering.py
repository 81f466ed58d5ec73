"""The table of the steering of an audit, and its lines for the terminal."""

import csv
import io

import pytest

from diffprobe.core.result import RunResult
from diffprobe.report.audit_steering import COLUMNS, points_of, render_steering_csv, steered_axes, steering_lines
from tests.evaluation.audit_world import TEXTURE, TONE, example, steered_example


@pytest.fixture(scope="module")
def result() -> RunResult:
    return steered_example(axes=(TEXTURE, TONE))


def test_the_table_has_a_line_per_number(result: RunResult) -> None:
    rows = list(csv.DictReader(io.StringIO(render_steering_csv(result))))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2 * 3 * 3 * 4
    first = next(row for row in rows if row["measure"] == "rate")
    (record,) = points_of(result, "texture", "steering_rate")["texture"][:1]
    assert float(first["value"]) == pytest.approx(record.value)
    assert float(first["low"]) <= record.value <= float(first["high"])
    assert first["axis"] == first["steered"] == "texture" and float(first["strength"]) == -2 and first["images"] == "24"
    assert {row["along"] for row in rows if row["measure"] == "moved"} == {"texture", "tone"}


def test_the_terminal_shows_rates_by_strength(result: RunResult) -> None:
    lines = steering_lines(result)
    assert steered_axes(result) == ["texture", "tone"]
    assert lines[0] == "texture, steered: rate of images, as perceived by planted eyes"
    assert lines[1].split() == ["steered", "-2", "+0", "+2"] and lines[2].startswith("texture")
    assert any("against 2 random directions (smallest attainable p 0.33)" in line for line in lines)


def test_without_steering_there_is_nothing() -> None:
    assert steering_lines(example()) == [] and steered_axes(example()) == []
    assert render_steering_csv(example()).splitlines() == [",".join(COLUMNS)]


def test_formulas_and_control_characters_are_defused() -> None:
    axis = TEXTURE.__class__(name="=cmd()\x1b[2J", positive=("up",), negative=("down",))
    result = steered_example(axes=(axis,))
    assert "\n=cmd" not in render_steering_csv(result) and "\x1b" not in "\n".join(steering_lines(result))
