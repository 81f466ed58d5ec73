"""The start of a training run: the main process decides where it continues, and hands that to the others.

Each process could look for a checkpoint itself; but one that looks later, or over a slow network file system, may find
another answer, and the processes would train from different states.
"""

import json
import os
from pathlib import Path

import lightning
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.core.json_file import parse_json
from diffprobe.core.processes import is_main_process
from diffprobe.core.restarts import RECORD, is_restart, note_start
from diffprobe.training.checkpoint_file import read_checkpoint
from diffprobe.training.launch import LaunchedProcesses

_VARIABLE = "DIFFPROBE_START"
"""What Lightning's child processes inherit; they start before they can be sent anything."""


def begin(trainer: lightning.Trainer, run_dir: Path, checkpoint: Path | None) -> Path | None:
    """Note the start of a job, and agree on folder and checkpoint with all processes of the run.

    Args:
        trainer: the Trainer of the run, before it runs.
        run_dir: folder of the run, as this process derives it.
        checkpoint: the checkpoint that this process would continue from; that of the main process counts.

    Returns: the checkpoint that all processes continue from; None to start at the beginning.
    Raises: RunFailed for a job that restarts without progress; ConfigError on a process whose configuration gives
        another folder than that of the main process.
    """
    if is_main_process():
        step = read_checkpoint(checkpoint)["global_step"] if checkpoint is not None and is_restart() else 0
        note_start(run_dir / RECORD, int(step))
    chosen = _handed_over(
        trainer, {"run_dir": str(run_dir.resolve()), "checkpoint": None if checkpoint is None else str(checkpoint)}
    )
    if Path(str(chosen["run_dir"])).name != run_dir.name:
        raise ConfigError(
            f"process {trainer.global_rank} has another configuration than the main process.",
            f"run folders: '{run_dir.resolve()}', main process: '{chosen['run_dir']}'",
            fix="the same files and versions on every node",
        )
    found = chosen["checkpoint"]
    return None if found is None else Path(str(found))


def _handed_over(trainer: lightning.Trainer, chosen: dict[str, str | None]) -> dict[str, str | None]:
    """Return what the main process has chosen."""
    if trainer.world_size == 1:
        return chosen
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if started or isinstance(environment, LaunchedProcesses):
        trainer.strategy.setup_environment()  # idempotent; the Trainer calls it again
        sent: dict[str, str | None] = trainer.strategy.broadcast(chosen)
        return sent
    if not is_main_process():
        return dict(parse_json(os.environ.get(_VARIABLE, "{}"), where=f"${_VARIABLE}")) or chosen
    os.environ[_VARIABLE] = json.dumps(chosen)
    return chosen
