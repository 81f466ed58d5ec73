"""`diffprobe runs` from the command line to what is printed and written."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from diffprobe.cli.main import main

REPORT = Path(__file__).parents[1] / "report"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with three runs."""
    shutil.copytree(REPORT / "results", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_lists_the_runs_in_each_format(project, capsys):
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "kind", "experiment"]
    assert [line.split()[0] for line in lines[1:]] == ["pixels", "seed0", "seed1"]
    assert main(["runs", "list", "--format", "json", "--where", "run=bank-0"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert main(["runs", "list", "--format", "csv", "--where", "run=bank-0"]) == 0
    (as_csv,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["run"] == as_csv["run"] == "seed0" and float(as_csv["score"]) == pytest.approx(row["score"], rel=1e-11)


def test_the_list_is_sorted(project, capsys):
    for key in ("score", "seconds", "started", "path"):
        assert main(["runs", "list", "--sort", key, "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        values = [row["run" if key == "path" else key] for row in rows]
        assert values == sorted(values, reverse=key == "score") and len(values) == 3


def test_the_best_record_is_printed_with_its_rule(project, capsys):
    name = json.loads((project / "runs/seed0/result.json").read_text())["metrics"][0]["name"]
    assert main(["runs", "best", name, "--split", "test", "--top", "1", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    values = [
        record["value"]
        for path in project.glob("runs/*/result.json")
        for record in json.loads(path.read_text())["metrics"]
        if record["name"] == name and record["split"] == "test"
    ]
    assert row[f"{name} (test)"] == max(values) and "exploratory: selected on test" in err


def test_a_comparison_names_settings_and_differences(project, capsys):
    assert main(["runs", "compare", "bank-0", "seed1", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["seed0", "seed1"]
    assert {"name": "seed", "values": [0, 1]} in found["settings"]
    assert main(["runs", "compare", "seed0", "seed1"]) == 0
    assert "difference" in capsys.readouterr().out.splitlines()[0]
    assert main(["runs", "compare", "seed0", "seed0"]) == 2
    assert "a comparison needs two" in capsys.readouterr().err


def test_the_page_is_written(project, capsys):
    (project / "runs/seed0/curves").mkdir()
    (project / "runs/seed0/curves/metrics.csv").write_text("step,train/loss\n1,2.0\n2,1.0\n")
    assert main(["runs", "open", "--no-browser"]) == 0
    assert capsys.readouterr().out == "runs/dashboard.html\n"
    page = (project / "runs/dashboard.html").read_text()
    assert "train/loss" in page and page.count("<polyline") == 1
    assert main(["runs", "open", "seed1", "--no-browser", "--out", "one.html"]) == 0
    assert "seed0" not in (project / "one.html").read_text()


def test_a_broken_file_is_named_and_is_the_exit_status(project, capsys):
    (project / "runs/seed0/result.json").write_text("{")
    assert main(["runs", "list"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and "not read: seed0:" in err


def test_a_folder_without_runs_is_an_error(project, capsys):
    assert main(["runs", "list", "--results", "cache"]) == 2
    assert "does not exist" in capsys.readouterr().err
