import os
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.runs import doctor

KEY = "0123456789" * 4


def texts(found: list[doctor.Finding], topic: str) -> list[str]:
    return [finding.text for finding in found if finding.topic == topic]


def test_each_topic_is_examined_and_nothing_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = doctor.examine()
    topics = {finding.topic for finding in found}
    assert topics >= {"diffprobe", "python", "libraries", "device", "threads", "bfloat16", "memory", "cache", "hub"}
    assert topics >= {"folder", "wandb", "slurm"} and not any(finding.stops for finding in found)
    assert "HF_HUB_OFFLINE" in texts(found, "hub")[0]
    assert list(tmp_path.iterdir()) == []  # looking writes nothing


def test_a_missing_library_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "no-such-package"))
    [missing] = [finding for finding in doctor.versions() if finding.stops]
    assert "no-such-package is not installed" in missing.text and missing.fix


def test_a_folder_that_cannot_be_written_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file, not a folder")
    stopped = [finding for finding in doctor.folders() if finding.stops]
    assert len(stopped) == 2 and "output" in stopped[0].text and "cannot be written" in stopped[0].text
    assert [finding.fix for finding in stopped] == ["output=FOLDER", "features.store=FOLDER"]


def test_the_size_of_a_cache_counts_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single_files/a").mkdir(parents=True)
    (tmp_path / "single_files/a/x").write_bytes(bytes(2_000_000))
    (tmp_path / "link").symlink_to(tmp_path / "single_files")
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path))
    assert f"converted single files: {tmp_path}, 2.0 MB" in texts(doctor.caches(), "cache")


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_key_is_printed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    [found] = doctor.wandb()
    assert KEY not in str(found) and f"logged in; logger=wandb runs {mode}" in found.text


def test_settings_that_contradict_wandb_do_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sideways")
    [found] = doctor.wandb()
    assert "sideways" in found.text and not found.stops


def sinfo(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "sinfo"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_partitions_come_from_sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sinfo(tmp_path, "echo 'gpu* up, 4 nodes, time limit 1-00:00:00, gpu:a100:4'", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = texts(doctor.slurm(), "slurm")
    assert found == ["inside job 17", "partition gpu* up, 4 nodes, time limit 1-00:00:00, gpu:a100:4"]
    sinfo(tmp_path, "echo 'cpu up, 2 nodes, time limit infinite, (null)'", monkeypatch)
    assert texts(doctor.slurm(), "slurm")[1] == "partition cpu up, 2 nodes, time limit infinite, no GPU"


@pytest.mark.parametrize(("text", "said"), [("echo no controller >&2; exit 1", "no controller"), ("sleep 5", "answer")])
def test_a_controller_that_does_not_answer_is_a_finding(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT", 0.2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    sinfo(tmp_path, text, monkeypatch)
    [found] = doctor.slurm()
    assert said in found.text and not found.stops


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("the driver is gone")

    def wrong() -> list[doctor.Finding]:
        raise ConfigError("a wrong variable.", fix="unset it")

    assert not doctor._guarded(broken)[0].stops and "driver is gone" in doctor._guarded(broken)[0].text
    assert doctor._guarded(wrong)[0].stops and doctor._guarded(wrong)[0].fix == "unset it"
