"""What is asked for: tables by name, folders, runs and experiments; each result once; and refusals that help."""

import shutil
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.report.table import build_table
from diffprobe.report.table_request import resolve_request, result_paths

REPORT = Path(__file__).parent


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A user's folder with results, and a table of the same name as a folder."""
    (tmp_path / "experiments/toy").mkdir(parents=True)
    shutil.copy(REPORT / "table.yaml", tmp_path / "experiments/toy/table.yaml")
    shutil.copytree(REPORT / "results", tmp_path / "runs")
    shutil.copytree(REPORT / "results" / "seed0", tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_comes_before_a_folder_and_a_path_is_a_folder():
    assert resolve_request(["toy"]).choices == () and len(resolve_request(["toy"]).results) == 3
    folder = resolve_request(["./toy"])
    assert folder.choices and len(folder.results) == 1 and folder.folder == "./toy"


def test_nothing_is_all_runs_and_an_experiment_is_its_runs():
    assert len(resolve_request([]).results) == 3 == len(resolve_request([], results="runs").results)
    found = resolve_request(["toy/classifier"])
    assert {spec.filter["experiment"] for spec in found.specs} == {"toy/classifier"} and found.choices


def test_runs_are_each_read_once_and_the_specs_name_them():
    names = ["runs/seed0", "runs/seed0/result.json", "runs/seed1"]
    found = resolve_request(names)
    assert len(found.results) == 2 and found.folder == "runs"
    assert all(spec.filter["run"] == ["bank-0", "bank-1"] for spec in found.specs)
    assert len(result_paths([".", "runs"])) == 4


@pytest.mark.parametrize(
    ("names", "results", "error", "facts"),
    [
        (["toys"], None, ConfigError, "'toys'(.|\n)*nearest: toy(.|\n)*experiments below 'runs': toy"),
        (["toys"], "elsewhere", ConfigError, r"experiments below 'elsewhere': \(none\)"),
        (["runs"], "runs", ConfigError, "--results runs(.|\n)*leave --results out"),
        (["runs", "nowhere"], None, ConfigError, "'nowhere' does not exist"),
        (["runs", "experiments/toy/table.yaml"], None, ConfigError, "is not a result file(.|\n)*result.json"),
        (["experiments"], None, RunFailed, "no result.json below 'experiments'"),
    ],
)
def test_what_is_neither_is_refused(names, results, error, facts):
    with pytest.raises(error, match=facts):
        resolve_request(names, results=results)


def test_tables_of_folders_in_python():
    table = build_table("runs", exploratory=True)
    assert len(table.parts) == 2 and "layer" in table.to_markdown() and "title:" in table.to_yaml()
    assert build_table(["runs/seed0", "runs/seed1"], exploratory=True).choices
