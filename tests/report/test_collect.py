"""Finding result files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.report.collect import collect
from tests.artifacts import edit

RESULTS = Path(__file__).parent / "results"


def test_finds_every_result_in_the_order_of_paths():
    assert [run.run for run in collect(RESULTS)] == ["pixels", "bank-0", "bank-1"]


def test_every_broken_file_is_named(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "r")
    (tmp_path / "r/seed0/result.json").write_text("{")
    (tmp_path / "r/seed1/result.json").write_text('{"header": {"kind": "store", "schema_version": 1}}')
    with pytest.raises(SchemaError) as error:
        collect(tmp_path / "r")
    assert "2 result file(s)" in str(error.value)
    assert "seed0/result.json" in str(error.value) and "artifact 'store'" in str(error.value)


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(RunFailed, match="no result.json"):
        collect(tmp_path)
    with pytest.raises(RunFailed, match="does not exist"):
        collect(tmp_path / "nowhere")


def test_a_record_of_no_cell_is_refused_with_its_file(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "r")
    path = tmp_path / "r" / "seed0" / "result.json"
    metrics = json.loads(path.read_text())["metrics"]
    edit(path, metrics=[{**metrics[0], "cell": "mid_block@x"}])
    with pytest.raises(SchemaError, match=r"seed0/result.json, metrics\[0\]': 'mid_block@x' is not a cell"):
        collect(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_named_like_a_result_but_is_none_is_refused(tmp_path, make):
    make(tmp_path / "result.json")
    with pytest.raises(SchemaError, match="result.json' is not a regular file"):
        collect(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    shutil.copytree(RESULTS, tmp_path / "r")
    scandir = os.scandir

    def without_permission(path):
        if os.fspath(path).endswith("seed1"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_permission)
    with pytest.raises(RunFailed, match="seed1' cannot be listed: Permission denied"):
        collect(tmp_path)
