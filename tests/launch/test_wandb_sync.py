"""Offline runs are found, and sent by `wandb sync`."""

import subprocess
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.launch.wandb_sync import offline_runs, send


def make(root: Path, name: str, *, synced: bool = False, empty: bool = False) -> Path:
    folder = root / "wandb" / f"offline-run-{name}"
    folder.mkdir(parents=True)
    if not empty:
        (folder / f"run-{name[-3:]}.wandb").write_bytes(b":W&B")
    if synced:
        (folder / f"run-{name[-3:]}.wandb.synced").touch()
    return folder


def test_runs_are_listed_by_start_time_without_those_that_were_sent(tmp_path: Path) -> None:
    late = make(tmp_path / "a/b", "20261127_140000-aaa")
    early = make(tmp_path / "c", "20261127_130000-bbb")
    sent = make(tmp_path / "c", "20261127_120000-ccc", synced=True)
    make(tmp_path / "d", "20261127_110000-ddd", empty=True)
    (tmp_path / "c/wandb/latest-run").symlink_to(early)
    assert offline_runs(tmp_path) == [early, late]
    assert offline_runs(tmp_path, include_synced=True) == [sent, early, late]
    with pytest.raises(RunFailed, match="does not exist"):
        offline_runs(tmp_path / "nowhere")


def test_all_are_sent_in_order_and_the_status_is_that_of_wandb(tmp_path: Path, monkeypatch) -> None:
    calls: list[list[str]] = []

    def call(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, 0 if len(calls) < 3 else 3)

    monkeypatch.setattr(subprocess, "run", call)
    runs = [Path(f"run-{i}") for i in range(450)]
    assert send(runs) == 3
    assert [word for words in calls for word in words[4:]] == [str(path) for path in runs]
    assert all(words[1:4] == ["-m", "wandb", "sync"] for words in calls)
