"""Where a run left off: an unfinished run continues from its last checkpoint, a finished one starts anew."""

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

LAST = "last.ckpt"
RESULT = "result.json"


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
    if not resume or (run_dir / RESULT).exists() or not last.exists():
        return None
    return last


def forget(*folders: Path) -> None:
    """Remove what a finished run left in its folders, which must not be taken for that of the run that starts now.

    Call it when all is judged and only training is left: a run that is refused loses nothing.
    """
    for folder in folders:
        for name in (LAST, RESULT):  # in this order: other processes that start now see no checkpoint
            (folder / name).unlink(missing_ok=True)
