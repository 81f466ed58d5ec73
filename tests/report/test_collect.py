"""Finding result files."""

import shutil
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.report.collect import collect

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
