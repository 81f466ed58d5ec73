"""A run says what it is doing, in order, on the main process; a long one says how long it will take."""

import io
import re

import lightning
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from diffprobe.config.schema import TrainerConfig
from diffprobe.core import progress
from diffprobe.core.progress import ProgressDisplay
from diffprobe.probes.classifier.linear import Config
from diffprobe.training import run_progress
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.progress import steps_of
from diffprobe.training.run_progress import RunProgress, phase_notes
from diffprobe.training.trainer import make_trainer, quiet


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


def progress_of(path, *, max_epochs=3, **options):
    lines = []
    watch = RunProgress(lines.append)
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


def test_a_long_fitting_has_a_line_each_half_minute_without_a_terminal(tmp_path, monkeypatch, capsys):
    made, _ = progress_of(tmp_path)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    made.fit(Validated(), DataLoader(torch.ones(4, 1)))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fitting")]
    assert len(said) == 12 and said[-1] == "fitting: 12 of 12 steps"
    assert re.fullmatch(r"fitting: 3 of 12 steps, about \d+ s left", said[2])


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
    module, data = Validated(), DataLoader(torch.ones(4, 1))
    made.fit(module, data, data)
    assert "fitting" in shown.getvalue() and "/12" in shown.getvalue()
    assert "validating" in shown.getvalue() and "/4" in shown.getvalue()  # at the end of an epoch


def test_a_pass_over_a_whole_split_has_a_bar_of_its_own(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    settings = TrainerConfig(accelerator="cpu", max_epochs=1)
    source = toy()
    classes = {"style": source.attributes["style"]}
    module = ClassifierModule("linear", Config(), widths=source.widths, classes=classes, settings=settings)
    with quiet():
        make_trainer(settings, run_dir=tmp_path).fit(module, datamodule=source)
    lines = capsys.readouterr().err.splitlines()
    reading = [line for line in lines if line.startswith("reading train: ")]
    assert reading and reading[-1].endswith("6 of 6 batches")
    assert lines.index(reading[-1]) < lines.index("fitting: 6 steps")


def test_steps_of_an_endless_epoch_are_unknown(tmp_path):
    made, _ = progress_of(tmp_path, max_epochs=2)
    made.fit_loop.max_batches = float("inf")
    assert steps_of(made) is None
    made, _ = progress_of(tmp_path, max_epochs=2, max_steps=7)
    made.fit_loop.max_batches = float("inf")
    assert steps_of(made) == 7


def test_phases_outside_of_the_trainer_are_printed_by_the_main_process_of_a_run_that_is_not_quiet(monkeypatch, capsys):
    phase_notes(True)("opening the features")
    phase_notes(False)("not shown")
    monkeypatch.setattr(run_progress, "is_main_process", lambda: False)
    phase_notes(True)("of another process")
    assert capsys.readouterr().err == "opening the features\n"
