"""A bar that follows real training, closes when it ends or breaks off, and stays away where nothing is trained."""

from contextlib import contextmanager

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from diffprobe.training.progress import StepBar


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
