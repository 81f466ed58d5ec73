"""A run says what it is doing, in order, on the main process; a long one says how long it will take."""

import io

import lightning
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from diffprobe.core.progress import ProgressDisplay
from diffprobe.training.progress import steps_of
from diffprobe.training.run_progress import RunProgress


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


class Validated(Tiny):
    def validation_step(self, batch, batch_idx):
        pass


def progress_of(path, *, clock=None, max_epochs=3, fail=-1, **options):
    lines = []
    watch = RunProgress(lines.append, **({"clock": clock} if clock else {}))
    made = lightning.Trainer(
        default_root_dir=path, callbacks=[watch], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=max_epochs, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    return made, lines


def test_a_run_says_what_it_is_doing(tmp_path):
    made, lines = progress_of(tmp_path)
    module, data = Validated(), DataLoader(torch.ones(4, 1))
    made.fit(module, data, data)
    made.validate(module, data, verbose=False)
    made.test(module, data, verbose=False)
    words = [line.partition(":")[0] for line in lines]
    assert words == ["preparing", "fitting", "validating", "testing", "saving"]
    assert "12 steps" in lines[1] and "4 batches" in lines[2]


def test_a_closed_form_says_so(tmp_path):
    made, lines = progress_of(tmp_path)
    made.validate(Validated(), DataLoader(torch.ones(4, 1)), verbose=False)
    assert lines == ["fitting in closed form, and validating: 4 batches"]


def test_a_long_fitting_has_a_line_each_minute_without_a_terminal(tmp_path):
    ticks = iter(range(0, 10_000, 25))
    made, lines = progress_of(tmp_path, clock=lambda: next(ticks))
    made.fit(Validated(), DataLoader(torch.ones(4, 1)))
    fitting = [line for line in lines if " of 12 steps" in line]
    assert fitting[0] == "fitting: 3 of 12 steps, about 3 min left" and len(fitting) == 3


def test_other_processes_are_silent(tmp_path, monkeypatch):
    made, lines = progress_of(tmp_path)
    monkeypatch.setattr(type(made), "is_global_zero", property(lambda self: False))
    made.fit(Validated(), DataLoader(torch.ones(4, 1)))
    assert lines == []


def test_the_display_closes_when_training_breaks_off(tmp_path):
    made, lines = progress_of(tmp_path)
    with pytest.raises(ValueError, match="stop"):
        made.fit(Validated(fails_at=2), DataLoader(torch.ones(4, 1)))
    assert made.callbacks[0]._bar is None and "saving: probe and result" not in lines


def test_a_bar_is_drawn_on_a_terminal(tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    watch = RunProgress(lambda line: None, display=lambda: ProgressDisplay(console=console))
    made, _ = progress_of(tmp_path)
    made.callbacks.append(watch)
    made.fit(Validated(), DataLoader(torch.ones(4, 1)))
    assert "fitting" in shown.getvalue() and "/12" in shown.getvalue()


def test_steps_of_an_endless_epoch_are_unknown(tmp_path):
    made, _ = progress_of(tmp_path, max_epochs=2)
    made.fit_loop.max_batches = float("inf")
    assert steps_of(made) is None
    made, _ = progress_of(tmp_path, max_epochs=2, max_steps=7)
    made.fit_loop.max_batches = float("inf")
    assert steps_of(made) == 7
