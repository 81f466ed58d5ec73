"""Checkpoints: an unfinished run continues from its last one, a finished run starts anew."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import INPUT, RESULT_FILE

LAST = "last.ckpt"
INPUTS = "inputs.json"
"""Digests of the inputs of a backbone's training, written when it starts: a checkpoint does not have them."""
_KIND, _SCHEMA_VERSION = "run_inputs", 1


def checkpoint_callback(run_dir: Path, *, every_steps: int = 0) -> ModelCheckpoint:
    """Keep the newest checkpoint as `last.ckpt` in the run's folder, every epoch or every so many steps.

    Lightning writes it in one transaction, so an interrupted write leaves the one before.
    """
    return ModelCheckpoint(
        dirpath=run_dir,
        filename=Path(LAST).stem,
        save_top_k=1,
        enable_version_counter=False,
        every_n_train_steps=every_steps or None,
        every_n_epochs=None if every_steps else 1,
        save_on_train_epoch_end=None if every_steps else True,
    )


def find_checkpoint(run_dir: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None to start at the beginning.

    Args:
        resume: `trainer.resume`; False starts anew in any case.
    """
    last = run_dir / LAST
    if not resume or (run_dir / RESULT_FILE).exists() or not last.exists():
        return None
    return last


def note_inputs(run_dir: Path, inputs: Mapping[str, str]) -> None:
    """Record the inputs of a run that starts: name -> digest."""
    write_artifact(run_dir / INPUTS, {"inputs": dict(inputs)}, kind=_KIND, schema_version=_SCHEMA_VERSION)


def require_same_inputs(run_dir: Path, inputs: Mapping[str, str]) -> None:
    """Check that an interrupted run would continue with the inputs it started with.

    Raises: ConfigError if an input changed since, or if the folder of the run has no record of them.
    """
    path = run_dir / INPUTS
    if not path.is_file():
        raise ConfigError(
            f"the interrupted run in '{run_dir}' has no {INPUTS}, so its inputs cannot be compared.",
            fix="trainer.resume=false starts anew",
        )
    before = read_json(path, kind=_KIND, schema_version=_SCHEMA_VERSION)["inputs"]
    other = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
    if other:
        raise ConfigError(
            f"the inputs of the interrupted run in '{run_dir}' have changed since it started.",
            f"changed since: {', '.join(name.removeprefix(INPUT) for name in other)}",
            fix="restore the files; or trainer.resume=false to start anew with the current ones",
        )


def forget(*folders: Path) -> None:
    """Remove checkpoint and result of a finished run, so that they are not mistaken for those of the run that starts.

    Call it after all validation, right before training, so that a refused run keeps its files.
    """
    for folder in folders:
        for name in (LAST, RESULT_FILE):  # in this order: other processes that start now see no checkpoint
            (folder / name).unlink(missing_ok=True)
