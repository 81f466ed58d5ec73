"""Names of living processes: random, locked, and free again when the process has ended."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.core import claim as module
from diffprobe.core.claim import abandoned, claim

HOLD = """
import sys, time
from pathlib import Path
from diffprobe.core.claim import claim
with claim(Path(sys.argv[1]), "x-") as name:
    print(name, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    with abandoned(folder, "x-") as found:
        return list(found)


def test_names_differ_and_leave_nothing_behind(tmp_path: Path) -> None:
    with claim(tmp_path, "x-") as first, claim(tmp_path, "x-") as second:
        assert first != second and first.startswith("x-")
        assert names(tmp_path) == []  # both are alive, though in this process
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_killed_process_is_abandoned(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert names(tmp_path) == []
    process.kill()
    process.wait()
    with abandoned(tmp_path, "x-") as found:
        assert found == [name]
        assert names(tmp_path) == []  # one process cleans up
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_machine_is_never_abandoned(tmp_path: Path) -> None:
    (tmp_path / "x-1.lock").write_text("00000000-another-machine")
    (tmp_path / "x-2.lock").write_text("")  # created this moment
    assert names(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_that_is_cleaned_up_before_it_is_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    removed: list[str] = []

    def late(handle: int, operation: int) -> None:
        if not removed:
            (file,) = tmp_path.iterdir()
            file.unlink()
            removed.append(file.name)
        flock(handle, operation)

    monkeypatch.setattr(module.fcntl, "flock", late)
    with claim(tmp_path, "x-") as name:
        assert [path.name for path in tmp_path.iterdir()] == [f"{name}.lock"]
        assert f"{name}.lock" not in removed


def test_without_locks_nothing_is_taken_for_abandoned_and_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), claim(tmp_path, "x-") as name:
        assert (tmp_path / f"{name}.lock").read_text() == "no locks"
        monkeypatch.undo()
        assert names(tmp_path) == []
    assert "has no locks" in caplog.text and str(tmp_path) in caplog.text


def test_an_error_of_the_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"), claim(tmp_path, "x-"):
        pass
    assert list(tmp_path.iterdir()) == []
