"""A bar that follows real training, closes when it ends or breaks off, and stays away where nothing is trained."""

from contextlib import contextmanager
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from diffprobe.core.heartbeat import read_progress
from diffprobe.training.progress import StepBar, StepHeartbeat, steps_of


class Tiny(lightning.LightningModule):
    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.weight, self.fails_at = torch.nn.Parameter(torch.zeros(1)), fails_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fails_at:
            raise ValueError("stop")
        return (self.weight * batch).sum()

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RecordingBar:
    def __init__(self) -> None:
        self.totals, self.steps, self.closed = [], 0, 0

    @contextmanager
    def make(self, total: int):
        self.totals.append(total)
        yield self
        self.closed += 1

    def update(self, n: int) -> None:
        self.steps += n


def trainer(bar, path, **settings):
    return lightning.Trainer(
        default_root_dir=path, callbacks=[StepBar(bar.make)], accelerator="cpu", logger=False, barebones=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


def test_follows_every_step_to_the_end(tmp_path):
    bar = RecordingBar()
    trainer(bar, tmp_path, max_epochs=3).fit(Tiny(), DataLoader(torch.ones(4, 1)))
    assert (bar.totals, bar.steps, bar.closed) == ([12], 12, 1)
    bar = RecordingBar()
    trainer(bar, tmp_path, max_epochs=3, max_steps=5).fit(Tiny(), DataLoader(torch.ones(4, 1)))
    assert (bar.totals, bar.steps, bar.closed) == ([5], 5, 1)


def test_closes_when_training_breaks_off(tmp_path):
    bar = RecordingBar()
    with pytest.raises(ValueError, match="stop"):
        trainer(bar, tmp_path, max_epochs=3).fit(Tiny(fails_at=2), DataLoader(torch.ones(4, 1)))
    assert (bar.steps, bar.closed) == (2, 1)


def test_stays_away_without_training(tmp_path):
    bar = RecordingBar()
    trainer(bar, tmp_path).test(Tiny(), DataLoader(torch.ones(4, 1)), verbose=False)
    assert bar.totals == []


def test_a_job_writes_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPROBE_HEARTBEAT", str(tmp_path / "progress.json"))
    made = trainer(RecordingBar(), tmp_path, max_epochs=3)
    made.callbacks.append(StepHeartbeat())
    made.fit(Tiny(), DataLoader(torch.ones(4, 1)))
    found = read_progress(tmp_path / "progress.json")
    assert (found.what, found.unit, found.done, found.total, found.seconds_left) == ("train", "steps", 12, 12, 0.0)


def test_a_stream_without_an_end_has_no_total_of_its_own():
    endless = SimpleNamespace(num_training_batches=float("inf"), max_epochs=3, max_steps=-1)
    assert steps_of(endless) is None
    endless.max_steps = 7
    assert steps_of(endless) == 7
