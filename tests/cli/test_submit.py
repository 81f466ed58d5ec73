"""`diffprobe submit`, against a false SLURM: what is printed, recorded and refused. tests/slurm has the real one."""

import json
from pathlib import Path

import pytest

from diffprobe.cli.main import main
from tests.launch.conftest import FalseSlurm, false_slurm  # noqa: F401

TRAIN = ["train", "experiment=emoji/sae", "cluster=local"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def submit(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """Submit, and return what is printed: stdout, or stderr of what failed."""
    capsys.readouterr()
    assert main(["submit", *words]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_ids_logs_and_run_folders_are_printed(false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    out = submit(capsys, *TRAIN, "seed=0,1", "--limit", "1")
    lines = out.splitlines()
    assert lines[:2] == ["job 100: extract", "job 101: train, 2 tasks, after 100"]
    assert "log: " in out and "101_1 run folder: " in out and lines[-1] == "state: diffprobe jobs"
    (script,) = Path("runs/jobs").glob("*/train.sbatch")
    assert "--array=0-1%1" in script.read_text()
    (record,) = Path("runs/jobs").glob("*/submission.json")
    tree = json.loads(record.read_text())
    assert tree["jobs"] == {"extract": "100", "train": "101"} and tree["command"][0] == "train"


def test_a_dry_run_prints_the_scripts_and_needs_no_slurm(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for words in ([*TRAIN, "--dry-run"], ["--dry-run", *TRAIN]):
        out = submit(capsys, *words)
        assert out.count("#!/bin/bash") == 2 and "arguments=(train experiment=emoji/sae)" in out
    assert not list(tmp_path.iterdir())
    err = submit(capsys, *TRAIN, status=2)
    assert "sbatch was not found" in err and "run it here: diffprobe train experiment=emoji/sae" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_in_the_queue_is_refused_and_a_stale_record_does_not_block(
    false_slurm: FalseSlurm,  # noqa: F811
    capsys,
) -> None:
    submit(capsys, *TRAIN)
    err = submit(capsys, *TRAIN, status=2)
    assert "in the queue already" in err and "job 101: " in err and "diffprobe jobs cancel 101" in err
    out = submit(capsys, *TRAIN, "seed=0,1")
    assert "in the queue as job 101, left out" in out and "job 102: train" in out  # the store is in the queue as well
    false_slurm.queue()
    assert "job 103: extract" in submit(capsys, *TRAIN)


@pytest.mark.slow
def test_the_same_command_submits_what_is_left(false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    out = submit(capsys, *TRAIN, "seed=0,1")
    false_slurm.queue()
    folder = Path(next(line for line in out.splitlines() if "101_0 run folder" in line).partition(": ")[2])
    folder.mkdir(parents=True)
    (folder / "result.json").touch()
    out = submit(capsys, *TRAIN, "seed=0,1")
    assert "finished, left out: " in out and "job 103: train\n" not in out and "job 103: train, after 102" in out
    assert submit(capsys, *TRAIN).splitlines()[-1] == "nothing is left to submit; --again submits finished runs as well"
    assert "job 104: train, after 102" in submit(capsys, *TRAIN, "--again")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to submit"),
        (["train", "experiment=emoji/sae"], "cluster=NAME is missing"),
        (["trian", "cluster=local"], "nearest: train"),
        (["submit", "cluster=local"], "runs on the login node"),
        ([*TRAIN, "--check"], "--dry-run"),
        ([*TRAIN, "trainer.max_epoch=3"], "nearest: trainer.max_epochs"),
        ([*TRAIN, "trainer=gpu"], "1 GPUs per node, but cluster 'local' has 0"),
        (
            ["extract", "experiment=emoji/sae", "--process", "0/2", "--parts", "2", "cluster=local"],
            "--parts and --process",
        ),
        (["extract", "experiment=emoji/sae", "features.source=live", "cluster=local"], "needs no store"),
        (["eval", "sae", "nowhere", "experiment=emoji/sae", "cluster=local"], "is of kind 'probe'"),
        (["demo", "data.limit=x", "cluster=local"], "data.limit"),
    ],
)
def test_what_is_refused(words: list[str], expected: str, false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    assert expected in submit(capsys, *words, status=2)
    assert not [call for call in false_slurm.calls if call.startswith("sbatch")]


@pytest.mark.parametrize("words", [[*TRAIN, "--proces", "1"], ["table", "emoji", "cluster=local", "--formt", "csv"]])
def test_an_option_that_the_verb_has_not_got_ends_with_its_usage(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["submit", *words, "--dry-run"])
    assert end.value.code == 2 and f"diffprobe {words[0]}" in capsys.readouterr().err


def test_slurms_own_words_and_nothing_left_behind(false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    false_slurm.refuse("nope")
    err = submit(capsys, *TRAIN, "cluster.partition=nope", status=2)
    assert "Invalid partition name specified" in err and "nothing was submitted" in err
    assert not list(Path("runs/jobs").glob("*/*"))


@pytest.mark.slow
def test_a_table_and_its_options(capsys) -> None:
    out = submit(capsys, "table", "emoji", "cluster=local", "output=here", "--format", "csv", "--dry-run")
    assert "arguments=(table emoji --format csv --results here)" in out and "emoji/layers output=here" in out


def test_any_other_verb_is_one_job(capsys) -> None:
    out = submit(capsys, "doctor", "cluster=local", "--dry-run")
    assert "arguments=(doctor)" in out and out.count("#!/bin/bash") == 1
