"""`diffprobe table` from the command line to the printed text."""

import io
import shutil
from pathlib import Path

import pytest

from diffprobe.cli.main import main

REPORT = Path(__file__).parents[1] / "report"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with one table and its results."""
    (tmp_path / "experiments/toy").mkdir(parents=True)
    shutil.copy(REPORT / "table.yaml", tmp_path / "experiments/toy/table.yaml")
    shutil.copytree(REPORT / "results", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("format", "suffix"), [("markdown", "md"), ("csv", "csv"), ("latex", "tex")])
def test_prints_each_format(project, capsys, format, suffix):
    assert main(["table", "toy", "--format", format]) == 0
    assert capsys.readouterr().out == (REPORT / "golden" / f"table.{suffix}").read_text()


def test_conditions_narrow_the_filter(project, capsys):
    assert main(["table", "toy", "--where", "run=bank-0", "--results", "runs"]) == 0
    assert "1 seed;" in capsys.readouterr().out


def test_a_stream_without_the_mark_gets_a_plain_one(project, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding="latin-1", newline="\n", write_through=True))
    assert main(["table", "toy"]) == 0
    printed, expected = buffer.getvalue().decode("latin-1"), (REPORT / "golden" / "table.md").read_text()
    assert printed == expected.replace("‡", "^") and "^ does not beat the strongest control" in printed


def test_errors_leave_no_half_table(project, capsys):
    assert main(["table", "toys"]) == 2
    assert "nearest: toy" in capsys.readouterr().err
    assert main(["table", "toy", "--results", "elsewhere"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "'elsewhere' does not exist" in err


def test_without_a_table_the_choice_is_said_and_saved(project, capsys):
    assert main(["table", "runs"]) == 2  # many cells, and only test was measured
    assert "SelectionOnTest" not in capsys.readouterr().out
    assert main(["table", "runs", "--exploratory"]) == 0
    out, err = capsys.readouterr()
    assert "accuracy of group by layer and timestep" in out and "no table.yaml" not in out
    assert "rows: tap; columns: timestep" in err and "--save-yaml" in err
    assert main(["table", "runs", "--exploratory", "--save-yaml", "experiments/mine/table.yaml"]) == 0
    assert "diffprobe table NAME --results runs" in capsys.readouterr().err
    assert main(["table", "mine", "--results", "runs"]) == 0
    assert capsys.readouterr() == (out, "")
    assert main(["table", "runs", "--exploratory", "--save-yaml", "experiments/mine/table.yaml"]) == 2
    assert "exists and is not replaced" in capsys.readouterr().err
