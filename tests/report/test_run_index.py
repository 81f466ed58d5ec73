"""The index of runs: what it lists is what the result files hold, with and without its cache."""

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.core.result import RunResult, read_result, write_result
from diffprobe.report.run_index import index_file, open_index

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "runs"))


def results_of(folder: Path, **options: bool) -> dict[str, RunResult]:
    return {run.path: run.result for run in open_index(folder, **options).runs}


def on_disk(folder: Path) -> dict[str, RunResult]:
    return {path.parent.relative_to(folder).as_posix(): read_result(path) for path in folder.rglob("result.json")}


def test_a_second_reading_comes_from_the_index_and_is_equal(folder: Path) -> None:
    first = open_index(folder)
    assert first.n_read == 3 and first.unreadable == {}
    second = open_index(folder)
    assert second.n_read == 0 and second.runs == first.runs
    assert {run.path: run.result for run in second.runs} == on_disk(folder)
    assert open_index(folder, use_cache=False).n_read == 3


def test_what_is_written_anew_added_or_removed_is_noticed(folder: Path) -> None:
    open_index(folder)
    changed = read_result(folder / "seed0/result.json")
    write_result(dataclasses.replace(changed, wall_time_s=77.0), folder / "seed0/result.json")
    shutil.copytree(folder / "seed1", folder / "deeper/seed2")
    shutil.rmtree(folder / "pixels")
    found = open_index(folder)
    assert found.n_read == 2 and {run.path: run.result for run in found.runs} == on_disk(folder)
    assert sorted(results_of(folder)) == ["deeper/seed2", "seed0", "seed1"]
    assert results_of(folder)["seed0"].wall_time_s == 77.0


@pytest.mark.parametrize("damage", ["removed", "garbage", "other version", "empty"])
def test_an_index_that_is_lost_or_damaged_is_rebuilt(folder: Path, damage: str) -> None:
    before = open_index(folder)
    file = index_file(folder)
    if damage == "other version":
        base = sqlite3.connect(file)
        base.execute("PRAGMA user_version = 999")
        base.commit()
        base.close()
    elif damage == "removed":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else b"SQLite format 3\0" + bytes(300))
    again = open_index(folder)
    assert again.n_read == 3 and again.runs == before.runs
    assert open_index(folder).n_read == 0


def test_a_cache_that_cannot_be_written_only_costs_time(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert open_index(folder).n_read == 3
    assert cache.read_text().startswith("a file")


def test_a_file_that_cannot_be_read_is_named_beside_the_others(folder: Path) -> None:
    open_index(folder)
    (folder / "seed0/result.json").write_text("{")
    for _ in range(2):
        found = open_index(folder)
        assert [run.path for run in found.runs] == ["pixels", "seed1"]
        assert list(found.unreadable) == ["seed0"] and "seed0/result.json" in found.unreadable["seed0"]


def test_a_run_is_found_by_path_and_by_a_name_that_one_run_has(folder: Path) -> None:
    index = open_index(folder)
    assert index.named("seed0/").path == index.named("bank-0").path == "seed0"
    shutil.copytree(folder / "seed0", folder / "copy")
    with pytest.raises(RunFailed, match=r"(?s)2 runs.*copy.*seed0"):
        open_index(folder).named("bank-0")
    with pytest.raises(RunFailed, match="no run 'bank-7'"):
        index.named("bank-7")


def test_folders_without_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="no result.json"):
        open_index(tmp_path)
    with pytest.raises(RunFailed, match="does not exist"):
        open_index(tmp_path / "nowhere")
