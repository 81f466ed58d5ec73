"""The history of W&B over restarts, read back from the offline files: no row twice, none missing."""

import json

import pytest

from diffprobe.config.schema import LoggerConfig, TrainerConfig
from diffprobe.core.errors import SchemaError
from diffprobe.core.signals import Terminated
from diffprobe.training import loggers
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.requeue import Requeue
from diffprobe.training.trainer import make_trainer, quiet
from diffprobe.training.wandb_history import PENDING, CheckpointedWandbLogger, read_pending
from tests.pretend_slurm import pretend_job
from tests.training.test_checkpoint import CELL, Interrupt, make
from tests.training.test_loggers import finished_records, logged_out  # noqa: F401
from tests.training.test_requeue import SignalWithinAStep

pytestmark = pytest.mark.usefixtures("logged_out")


class Sink:
    """Stands for an open run: what it was given, with its step."""

    def __init__(self):
        self.rows = []
        self.offline = True
        self.id = self.name = "sink"

    def watch(self, *arguments, **named):
        """Take what Lightning offers."""

    def log(self, row, step):
        self.rows.append((step, row))


def logger_of(run_dir, sink, resume=False):
    run_dir.mkdir(exist_ok=True)
    return CheckpointedWandbLogger(sink, run_dir, resume=resume)


def steps(sink):
    return [row["trainer/global_step"] for _, row in sink.rows]


def test_rows_wait_for_a_checkpoint_and_those_after_it_are_made_again(tmp_path):
    first = Sink()
    logger = logger_of(tmp_path / "run", first)
    for step in range(6):
        logger.log_metrics({"loss": float(step)}, step)
    logger.checkpoint_written(4)  # covers the steps 0 to 3; the last of them waits
    assert steps(first) == [0, 1, 2]
    second = Sink()
    logger = logger_of(tmp_path / "run", second, resume=True)  # after a kill
    logger.continue_from(4)
    for step in range(4, 8):
        logger.log_metrics({"loss": 10.0 + step}, step)
    logger.send_all()
    assert steps(second) == [3, 4, 5, 6, 7]
    assert [number for number, _ in first.rows + second.rows] == list(range(8))
    assert not (tmp_path / "run" / PENDING).exists()


def test_a_repeated_validation_replaces_the_first(tmp_path):
    sink = Sink()
    logger = logger_of(tmp_path / "run", sink)
    logger.log_metrics({"train/loss": 1.0}, 5)
    logger.log_metrics({"val/fvu": 0.5}, 5)
    logger = logger_of(tmp_path / "run", sink, resume=True)
    logger.continue_from(6)
    logger.log_metrics({"val/fvu": 0.25}, 5)
    logger.send_all()
    assert [row for _, row in sink.rows] == [
        {"train/loss": 1.0, "trainer/global_step": 5}, {"val/fvu": 0.25, "trainer/global_step": 5},
    ]  # fmt: skip


def test_a_line_that_was_cut_off_is_left_out_and_another_damage_named(tmp_path):
    path = tmp_path / PENDING
    path.write_text('{"sent": 3}\n{"step": 1, "metrics": {"a": NaN}}\n{"step": 2, "metr')
    n_sent, rows = read_pending(path)
    assert n_sent == 3 and [row["step"] for row in rows] == [1]
    for damaged in ("no json\n", '{"sent": 1}\n{"step": "x", "metrics": {}}\n', "[]\n"):
        path.write_text(damaged)
        with pytest.raises(SchemaError, match=PENDING):
            read_pending(path)


def test_a_requeued_job_has_the_row_of_the_step_at_which_it_was_saved(toy, tmp_path, monkeypatch):
    pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)
    settings = TrainerConfig(accelerator="cpu", max_epochs=4, log_every_steps=1, enable_progress_bar=False)
    sinks = {}

    def train(name, requeue=None, *callbacks):
        run_dir, resume = tmp_path / name, name in sinks
        sink = sinks.setdefault(name, Sink())
        with quiet():
            logger = logger_of(run_dir, sink, resume)
            trainer = make_trainer(settings, run_dir=run_dir, callbacks=list(callbacks), logger=logger, requeue=requeue)
            trainer.fit(
                make("topk", settings), datamodule=toy(cells=(CELL,)),
                ckpt_path=find_checkpoint(run_dir, resume=resume), weights_only=True,
            )  # fmt: skip
        logger.send_all()

    train("whole")
    with Requeue() as requeue, pytest.raises(Terminated):
        train("cut", requeue, SignalWithinAStep(7))
    train("cut")
    assert sinks["cut"].rows == sinks["whole"].rows and 8 in steps(sinks["whole"])


def history(folder):
    """Rows that W&B got: of all its files in the order of their names, by step and names, with W&B's own number."""
    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in finished_records(path, seconds=5):
            if record.HasField("history"):
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                rows.append(items)
    names = ("_timestamp", "_runtime", "_wandb")
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 4])
def test_an_interrupted_run_has_the_history_of_an_undisturbed_one(toy, tmp_path, every):
    settings = TrainerConfig(
        accelerator="cpu", max_epochs=4, log_every_steps=1, checkpoint_every_steps=every, enable_progress_bar=False
    )

    def train(run_dir, callbacks=()):
        checkpoint = find_checkpoint(run_dir, resume=True)
        with quiet():
            logger = loggers.make_logger(
                LoggerConfig(kind="wandb"), run_dir=run_dir, experiment="", run_name="r", job_type="sae", tree={},
                resume=checkpoint is not None,
            )  # fmt: skip
            trainer = make_trainer(settings, run_dir=run_dir, callbacks=list(callbacks), logger=logger)
            try:
                trainer.fit(
                    make("topk", settings), datamodule=toy(cells=(CELL,)), ckpt_path=checkpoint, weights_only=True
                )
                logger.send_all()
            finally:
                logger.experiment.finish()

    train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path / "cut", [Interrupt(15)])
    train(tmp_path / "cut")
    whole, cut = history(tmp_path / "whole"), history(tmp_path / "cut")
    assert [row["_step"] for row in cut] == list(range(len(cut)))
    assert cut == whole and len(whole) >= 24
