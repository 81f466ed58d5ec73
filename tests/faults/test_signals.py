"""Signals to real processes: the exit status of the signal, one line, no result, and the same numbers afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.faults.conftest import OUTSIDE, ROOT, delays, report, wait_for
from tests.pretend_slurm import pretend_job

pytestmark = pytest.mark.slow
ENDS = [(signal.SIGTERM, 143, "terminated (SIGTERM)"), (signal.SIGINT, 130, "interrupted")]


def assert_one_line(command, words):
    lines = command.lines()
    assert [line for line in lines if line.startswith(words)] == lines[-1:], lines
    assert "Traceback" not in command.output()


@pytest.mark.parametrize(("number", "status", "words"), ENDS, ids=["SIGTERM", "SIGINT"])
def test_signals_at_random_points_of_training(run, whole, tmp_path, capsys, number, status, words):
    counts = Counter()
    started = time.monotonic()
    assert run.start(tmp_path / "timed").wait() == 0
    for i, delay in enumerate(delays(5, 0.9 * (time.monotonic() - started), seed=int(number))):
        output = tmp_path / f"run-{i}"
        command = run.start(output)
        time.sleep(delay)
        command.send(number)
        found = command.wait()
        counts["tried"] += 1
        if found in (status, OUTSIDE):
            if found == status:
                assert_one_line(command, words)
            counts["doubled"] += run.outcome(output) not in (None, whole)  # whole: it was written before the signal
            assert run.start(output).wait() == 0
        else:
            assert found == 0, command.output()  # it had ended before
        outcome = run.outcome(output)
        counts["equal"] += outcome == whole
        counts["lost"] += outcome is None
    report(f"{signal.Signals(number).name} at random points of training", counts, capsys)
    assert counts == Counter(tried=5, equal=5)


@pytest.mark.parametrize(("number", "status", "words"), ENDS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_within_training_steps(run, tmp_path, number, status, words):
    """Where Lightning has handlers of its own."""
    command = run.start(tmp_path / "out", "trainer.max_epochs=100000")
    assert wait_for(lambda: any((tmp_path / "out").rglob("last.ckpt")), command=command), command.output()
    command.send(number)
    assert command.wait() == status
    assert_one_line(command, words)
    assert not list((tmp_path / "out").rglob("result.json")) and not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize(("number", "status", "words"), ENDS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_training_of_a_backbone(start, tiny_shards, tmp_path, number, status, words):
    command = start(
        "train", "experiment=emoji/train_autoencoder", f"data.path={tiny_shards}", "data.batch_size=8",
        "model={resolution: 16, channels: [8, 8], latent_channels: 2, norm_groups: 4}", "trainer.max_epochs=100000",
        "trainer.enable_progress_bar=false", f"output={tmp_path}",
    )  # fmt: skip
    assert wait_for(lambda: any(tmp_path.rglob("last.ckpt")), command=command), command.output()
    command.send(number)
    assert command.wait() == status
    assert_one_line(command, words)
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("weights"))


@pytest.mark.parametrize(("number", "status", "words"), ENDS, ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_extraction_and_the_demo(start, tiny_study, tmp_path, monkeypatch, number, status, words):
    monkeypatch.chdir(ROOT)
    settings = [setting for setting in tiny_study if not setting.startswith(("features.store", "experiment"))]
    extraction = ["features.taps=[mid_block]", f"features.timesteps={list(range(1, 400))}".replace(" ", "")]
    for argv, began in (
        (["extract", *settings, *extraction, "--quiet"], lambda: any((tmp_path / "stores").rglob("*"))),
        (["demo", *settings, "experiment=tiny/demo", f"output={tmp_path}/demo"], lambda: (tmp_path / "demo").is_dir()),
    ):
        command = start(*argv, f"features.store={tmp_path}/stores")
        assert wait_for(began, command=command), command.output()
        command.send(number)
        assert command.wait() == status, command.output()
        assert_one_line(command, words)


def test_the_command_after_it_does_not_run(run, run_settings, tmp_path):
    """`train && table` in a shell, with an ordinary interpreter that also has to import everything."""
    settings = " ".join(f"'{setting}'" for setting in (*run_settings, "trainer.max_epochs=100000"))
    line = f"{sys.executable} -m diffprobe train {settings} output={tmp_path}/out && echo went on; echo status $?"
    shell = subprocess.Popen(
        ["bash", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert wait_for(lambda: any((tmp_path / "out").rglob("last.ckpt")), seconds=300)
    (child,) = (int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(shell.pid)], text=True).split())
    os.kill(child, signal.SIGTERM)
    out, err = shell.communicate(timeout=120)
    assert out == "status 143\n" and "terminated (SIGTERM)" in err


def test_requeue_signals_at_random_points(run, whole, tmp_path, capsys):
    """SIGUSR1 of SLURM: the job saves and ends, or is killed on the way; then it starts again."""
    environ: dict[str, str] = {}
    requeued = pretend_job(tmp_path / "slurm", environ.__setitem__, lambda name: None)
    counts, generator = Counter(), random.Random(3)
    started = time.monotonic()
    assert run.start(tmp_path / "timed").wait() == 0
    longest = time.monotonic() - started
    for i, delay in enumerate(delays(8, 0.7 * longest, seed=2)):
        output = tmp_path / f"run-{i}"
        command = run.start(output, **environ)
        assert wait_for(lambda: run.folder(output) is not None, command=command)  # noqa: B023
        time.sleep(delay / 2)
        command.send(signal.SIGUSR1)
        if i % 2:
            time.sleep(generator.uniform(0, longest / 2))
            command.send(signal.SIGKILL)
        status = command.wait()
        counts["tried"] += 1
        assert status in ((0, 143, -signal.SIGKILL) if i % 2 else (0, 143)), command.output()
        if status:
            assert run.start(output, **environ).wait() == 0
        outcome = run.outcome(output)
        counts["lost"] += outcome is None
        counts["equal"] += outcome == whole
        counts["doubled"] += any(output.rglob("hpc_ckpt*"))
    report("SIGUSR1 under SLURM", counts, capsys)
    assert counts == Counter(tried=8, equal=8) and "requeue 17" in requeued.read_text().splitlines()
