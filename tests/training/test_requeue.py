"""SIGUSR1 under SLURM: a checkpoint between two steps, the job requeued, and nothing that a later evaluation loads."""

import os
import signal

import lightning
import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.signals import Terminated
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.checkpoint_file import read_checkpoint
from diffprobe.training.requeue import Requeue
from diffprobe.training.trainer import honest_ends, make_trainer, quiet
from tests.pretend_slurm import JOB, pretend_job
from tests.training.test_checkpoint import CELL, Interrupt, make


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Pretend to be a batch job; return the file in which a false `scontrol` lists its arguments."""
    return pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)


class SignalWithinAStep(lightning.Callback):
    """Sends SIGUSR1 when the gradient of a step is known and the weights are still those of before."""

    def __init__(self, step, number=signal.SIGUSR1):
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def settings_of():
    return TrainerConfig(accelerator="cpu", max_epochs=4, enable_progress_bar=False)


@pytest.mark.parametrize("kind", ["topk", "classifier"])
def test_a_requeued_run_continues_between_two_steps_and_equals_an_undisturbed_one(toy, tmp_path, job, capfd, kind):
    settings = settings_of()
    with quiet():
        whole = make(kind, settings)
        make_trainer(settings, run_dir=tmp_path / "whole").fit(whole, datamodule=toy(cells=(CELL,)))
        cut = tmp_path / "cut"
        with Requeue() as requeue, pytest.raises(Terminated):
            make_trainer(settings, run_dir=cut, callbacks=[SignalWithinAStep(7), Interrupt(10)], requeue=requeue).fit(
                make(kind, settings), datamodule=toy(cells=(CELL,))
            )
        assert [path.name for path in cut.glob("*ckpt*")] == ["last.ckpt"]
        assert read_checkpoint(cut / "last.ckpt")["global_step"] == 8  # within the second epoch of six steps
        assert job.read_text() == "requeue 17\n"
        assert f"SIGUSR1: '{cut}/last.ckpt' is written at step 8; job 17 is requeued" in capfd.readouterr().err
        second = make(kind, settings)
        make_trainer(settings, run_dir=cut).fit(
            second, datamodule=toy(cells=(CELL,)), ckpt_path=find_checkpoint(cut, resume=True), weights_only=True
        )
    for (name, one), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert one.equal(other), name


def test_sigterm_saves_between_two_steps_and_leaves_the_queue_to_slurm(toy, tmp_path, job, capfd):
    settings = settings_of()
    with quiet(), Requeue() as requeue, pytest.raises(Terminated):
        make_trainer(
            settings, run_dir=tmp_path / "cut", callbacks=[SignalWithinAStep(7, signal.SIGTERM)], requeue=requeue
        ).fit(make("classifier", settings), datamodule=toy(cells=(CELL,)))
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["global_step"] == 8
    assert "written at step 8" in capfd.readouterr().err and not job.exists()


@pytest.mark.parametrize(
    ("answer", "requeued"),
    [
        ("JobState=RUNNING PreemptTime=2026-11-27T14:00:00", True),
        ("JobState=RUNNING PreemptTime=None", False),  # scancel --signal=TERM
        ("JobState=CANCELLED PreemptTime=2026-11-27T14:00:00", False),
    ],
)
def test_a_preempted_job_goes_back_before_it_ends_by_itself(tmp_path, job, answer, requeued):
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {job}\necho JobId=17 {answer}\n')
    with pytest.raises(Terminated), Requeue(), Requeue():
        raise Terminated
    assert job.read_text().splitlines() == ["show job --oneliner 17", *["requeue 17"] * requeued]
    job.unlink()
    with pytest.raises(AttributeError), Requeue():  # as where cleaning up fails
        try:
            raise Terminated
        finally:
            raise AttributeError
    assert job.read_text().splitlines() == ["show job --oneliner 17", *["requeue 17"] * requeued]


def test_the_inner_of_two_takes_the_signal(job):
    with Requeue() as outer:
        with Requeue() as inner:
            inner.begin_steps()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert inner.asked and not outer.asked and not job.exists()
            inner.asked = False
            inner.end_steps()
        os.kill(os.getpid(), signal.SIGUSR1)
    assert job.read_text() == "requeue 17\n"


def test_a_run_that_goes_on_after_the_signal_is_not_disturbed_by_it(toy, tmp_path, job):
    """It goes on where SLURM does not requeue it."""
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {job}; exit 1\n')
    settings = settings_of()
    found = []
    for signalled in (False, True):
        run_dir, source = tmp_path / str(signalled), toy(cells=(CELL,))
        torch.save({"state_dict": {}}, tmp_path / "hpc")
        run_dir.mkdir()
        (tmp_path / "hpc").rename(run_dir / "hpc_ckpt_1.ckpt")  # what Lightning would load before anything else
        module = make("classifier", settings)
        with Requeue() as requeue, quiet():
            trainer = make_trainer(
                settings, run_dir=run_dir, callbacks=[SignalWithinAStep(9)] * signalled, requeue=requeue
            )
            trainer.fit(module, datamodule=source)
            trainer.validate(module, datamodule=source, verbose=False)
            trainer.test(module, datamodule=source, verbose=False)
        found.append(module.scores)
    assert found[0] == found[1] and job.exists()


@pytest.mark.usefixtures("job")
def test_a_signal_outside_of_training_requeues_at_once(job, capfd):
    with Requeue():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert job.read_text() == "requeue 17\n" and "no training step is running" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.usefixtures("job")
def test_a_task_of_an_array_is_requeued_by_its_own_id_and_a_failure_is_said(job, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with Requeue() as requeue:
        requeue.submit("saved")
        assert job.read_text() == "requeue 20_3\n"
        (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho no such job >&2; exit 1\n")
        requeue.submit("saved")
        assert "job 20_3 is not requeued (no such job)" in capfd.readouterr().err
        monkeypatch.setenv("PATH", str(tmp_path))
        requeue.submit("saved")
    assert "job 20_3 is not requeued (scontrol: No such file" in capfd.readouterr().err


def test_without_a_batch_job_the_signal_is_left_alone():
    for environ in ({}, {**JOB, "SLURM_JOB_NAME": "interactive"}):
        with Requeue(environ):
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.usefixtures("job")
def test_a_handler_of_somebody_else_is_kept():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Requeue():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_connection_that_sigterm_has_ended_is_no_failure_of_the_run():
    """SLURM ends W&B's own process together with the run."""
    requeue = Requeue({})
    with pytest.raises(ConnectionResetError), honest_ends(requeue):
        raise ConnectionResetError("Connection lost")
    requeue.ending = True
    with pytest.raises(Terminated), honest_ends(requeue):
        raise ConnectionResetError("Connection lost")
