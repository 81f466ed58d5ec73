"""Rows, the CSV file and terminal lines of an audit."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.audit_table import render_csv, subject_rows, terminal_lines
from tests.evaluation.audit_world import TEXTURE, TONE, example

GOLDEN = Path(__file__).parent / "golden" / "audit.csv"


def small() -> RunResult:
    """A result with simple numbers: the golden file must not depend on linear algebra."""

    def record(name: str, value: float, subject: str, **detail: object) -> MetricRecord:
        return MetricRecord(name=name, value=value, split="prompts", n=2, cell="mid@t1", target="tone",
                            controls={"words_only": 0.125} if name == "association" else {},
                            detail={"subject": subject, "group": None, **detail})  # fmt: skip

    tests = {"p": 0.0005, "smallest_p": 0.0001, "q": 0.001}
    metrics = [MetricRecord(
        name="discoveries", value=1.0, split="prompts", n=2,
        detail={"axes": {"tone": {"positive": ["dark"], "negative": ["light"]}}, "reference": "uniform",
                "notes": ["A note."]},
    )]  # fmt: skip
    for sign, subject in ((-1, "=cook()"), (1, 'judge, "old"\n')):
        found = {
            "found": sign > 0,
            "random_percentile": 0.75,
            "projection": 2.0 * sign,
            "projection_interval": [-3.0, 3.0],
        }
        metrics += [
            record("association", 0.25 * sign, subject, interval=[-0.5, 0.5], **tests, **found),
            record("position", 0.5 * sign, subject, interval=[-0.75, 0.75], **tests),
            record("default", 0.1 * sign, subject, interval=None, **tests),
            record("rate", 0.5 + sign / 4, subject, interval=[0.25, 0.75]),
            record("amplification", sign / 4, subject, interval=None, reference=0.5, away=True),
        ]
    metrics.append(MetricRecord(name="silhouette", value=0.5, split="prompts", n=2,
                                detail={"clusters": [{"subjects": ["=cook()"], "words": []}]}))  # fmt: skip
    return replace(example(), metrics=tuple(metrics))


def test_the_csv_file_is_as_before() -> None:
    assert render_csv(small()) == GOLDEN.read_text(encoding="utf-8")


def test_no_cell_of_the_csv_file_is_a_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(small()))))
    assert [row["subject"] for row in rows] == ['judge, "old"', "'=cook()"]
    assert [float(row["association"]) for row in rows] == [0.25, -0.25]


def test_rows_go_from_the_positive_to_the_negative_end_of_each_axis() -> None:
    rows = subject_rows(example(axes=(TEXTURE, TONE)))
    assert [row.axis for row in rows] == ["texture"] * 6 + ["tone"] * 6
    values = [row.association for row in rows[:6]]
    assert values == sorted(values, reverse=True)
    assert all(row.amplification is not None for row in rows[:6]) and all(row.amplification is None for row in rows[6:])
    assert all(row.cluster is not None for row in rows)


def test_the_terminal_shows_ends_numbers_and_notes() -> None:
    lines = terminal_lines(small())
    assert lines[0] == "tone: positive is dark, negative is light"
    assert "judge" in lines[2] and "+0.250" in lines[2] and "yes" in lines[2] and "[0.250, 0.750]" in lines[2]
    assert lines[-1] == "note: A note." and all("\n" not in line for line in lines)


@pytest.mark.parametrize(("n", "shown"), [(40, 40), (41, 40)])
def test_the_terminal_shows_both_ends_of_many_subjects(n: int, shown: int) -> None:
    result = small()
    (one,) = [m for m in result.metrics if m.name == "association" and m.detail["subject"] == "=cook()"]
    many = [replace(one, value=i / 100, detail={**one.detail, "subject": f"name {i}"}) for i in range(n)]
    lines = terminal_lines(replace(result, metrics=(result.metrics[0], *many)))
    assert sum("name " in line for line in lines) == shown
    assert any("1 subjects in between" in line for line in lines) is (n > shown)
