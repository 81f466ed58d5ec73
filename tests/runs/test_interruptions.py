"""Runs that signals, kills and changed inputs interrupt end with the numbers of undisturbed ones, or are refused."""

import os
import shutil
import signal

import lightning
import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.result import read_result
from diffprobe.core.signals import Terminated
from diffprobe.runs.extract import extract_run
from diffprobe.runs.plan import plan
from diffprobe.runs.train import train
from diffprobe.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.pretend_slurm import pretend_job

pytestmark = pytest.mark.slow

LINEAR = ["probe=linear", "probe.targets=[label]", "probe.params.controls=[]", "trainer.max_epochs=3"]
"""Three epochs of four steps."""


class AtStep(lightning.Callback):
    """Does something when a step has its gradient, and before the weights change."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            self.act()


def send(*signals):
    for number in signals:
        os.kill(os.getpid(), number)


def stop():
    raise RuntimeError("stopped")


@pytest.fixture
def whole(run, tmp_path):
    """Settings of a run, its configuration, and its undisturbed result."""
    extract_run(run(*LINEAR), progress=False)
    return read_result(train(run(*LINEAR, f"output={tmp_path}/whole")))


@pytest.mark.slow
def test_a_requeue_signal_changes_no_number_with_or_without_a_restart(run, whole, tmp_path, monkeypatch):
    requeued = pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)
    config = run(*LINEAR)
    folder = plan(config).run_dir
    with pytest.raises(Terminated):
        train(config, callbacks=[AtStep(5, lambda: send(signal.SIGUSR1))])
    assert requeued.read_text() == "requeue 17\n" and not (folder / "result.json").exists()
    assert read_result(train(config)).metrics == whole.metrics
    (folder / "hpc_ckpt_1.ckpt").write_bytes((folder / "last.ckpt").read_bytes())  # of an earlier version
    assert read_result(train(config)).metrics == whole.metrics
    assert not list(folder.glob("hpc_ckpt*"))
    with pytest.raises(Terminated):
        train(config, callbacks=[AtStep(5, lambda: send(signal.SIGTERM)), AtStep(7, stop)])
    steps = []
    path = train(config, callbacks=[AtStep(step, lambda step=step: steps.append(step)) for step in range(12)])
    assert steps == [6, 7, 8, 9, 10, 11]  # an epoch has four steps
    assert read_result(path).metrics == whole.metrics


def test_a_job_that_starts_anew_does_so_once(run, whole, tmp_path, monkeypatch):
    """`trainer.resume=false` is meant for the first start; a requeued job continues, and ends with its result."""
    requeued = pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)
    config, steps = run(*LINEAR, "trainer.resume=false"), []
    with pytest.raises(Terminated):
        train(config, callbacks=[AtStep(5, lambda: send(signal.SIGUSR1))])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    path = train(config, callbacks=[AtStep(step, lambda step=step: steps.append(step)) for step in range(12)])
    assert steps == [6, 7, 8, 9, 10, 11] and requeued.exists()
    assert read_result(path).metrics == whole.metrics
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")  # requeued again, while it wrote its result
    assert train(config, callbacks=[AtStep(0, stop)]) == path
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, callbacks=[AtStep(0, stop)])


def test_an_unfinished_run_with_a_checkpoint_of_lightnings_own_is_refused_and_keeps_it(run, whole, tmp_path):
    config = run(*LINEAR)
    foreign = plan(config).run_dir / "hpc_ckpt_2.ckpt"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    with pytest.raises(ConfigError, match=r"hpc_ckpt_2.ckpt'(.|\n)*trainer.resume=false"):
        train(config)
    assert foreign.exists()
    assert read_result(train(run(*LINEAR, "trainer.resume=false"))).metrics != ()


def test_a_damaged_checkpoint_is_named_and_loses_nothing(run, whole):
    config = run(*LINEAR)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, callbacks=[AtStep(9, stop)])
    last = plan(config).run_dir / "last.ckpt"
    good = last.read_bytes()
    for bad in (b"", good[: len(good) // 2], good[:200] + b"x" + good[201:]):
        last.write_bytes(bad)
        with pytest.raises(SchemaError, match=r"last.ckpt'(.|\n)*trainer.resume=false"):
            train(config)
        assert last.read_bytes() == bad
    last.write_bytes(good)
    state = read_checkpoint(last)
    name = next(iter(state["state_dict"]))
    write_checkpoint({**state, "state_dict": {**state["state_dict"], name: torch.zeros(3, 3, 3)}}, last)
    with pytest.raises(SchemaError, match=rf"last.ckpt' is of other networks(.|\n)*{name}(.|\n)*trainer.resume=false"):
        train(config)
    last.write_bytes(good)
    assert read_result(train(config)).metrics == whole.metrics


@pytest.mark.parametrize("what", ["shards", "weights"])
def test_a_run_does_not_continue_on_other_inputs(run, tiny_sd, tiny_shards, tmp_path, what):
    from safetensors.torch import load_file, save_file

    from diffprobe.shards.index import build_index

    shards, weights = tmp_path / "shards", tmp_path / "unet.safetensors"
    shutil.copytree(tiny_shards, shards)
    shutil.copy(next((tiny_sd / "unet").glob("*.safetensors")), weights)
    config = run(*LINEAR, f"data.path={shards}", f"backbone.denoiser_weights={weights}")
    extract_run(config, progress=False)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, callbacks=[AtStep(9, stop)])
    if what == "shards":  # two shards change their names: the same samples in another order, and another set
        shutil.copy(shards / "train-0001.tar", shards / "kept")
        shutil.move(shards / "train-0000.tar", shards / "train-0001.tar")
        shutil.move(shards / "kept", shards / "train-0000.tar")
        build_index(shards, name="tiny", licence="CC0-1.0")
    else:
        tensors = load_file(weights)
        save_file({name: value * 1.5 for name, value in tensors.items()}, weights)
    extract_run(config, progress=False)
    named = {"shards": "shards, store", "weights": "backbone, store"}[what]
    with pytest.raises(ConfigError, match=rf"inputs(.|\n)*changed since: {named}(.|\n)*trainer.resume=false"):
        train(config)
    anew = run(*LINEAR, f"data.path={shards}", f"backbone.denoiser_weights={weights}", "trainer.resume=false")
    assert read_result(train(anew)).metrics


def test_signals_end_a_run_with_their_own_exceptions_and_without_a_result(run, whole):
    config = run(*LINEAR)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number, error in (
        (signal.SIGTERM, Terminated),
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
    ):
        with pytest.raises(error):
            train(config, callbacks=[AtStep(9, lambda number=number: send(number))])
        assert not (plan(config).run_dir / "result.json").exists()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert read_result(train(config)).metrics == whole.metrics
