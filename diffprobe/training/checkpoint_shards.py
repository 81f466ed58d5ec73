"""Checkpoints of processes that share the latents of an autoencoder: a file for each, and `last.ckpt` that names them.

`last.ckpt` has what all processes share (loops, schedules) and the names and checksums of the others, and is written
after them: a failure or a kill at any point leaves the checkpoint before, with its files.
"""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffprobe.core.errors import ConfigError, RunFailed, SchemaError
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.training.checkpoint_file import read_checkpoint, verify_checkpoint, write_checkpoint

OWN = ("state_dict", "optimizer_states")
"""What each process has a part of."""
PARTS = "latent_shards"
"""Key of what names the files of the processes."""
_RESTART = "trainer.resume=false starts anew"


class ShardedCheckpoint:
    """Writes and reads the files; remembers under which names the last ones are."""

    def __init__(self) -> None:
        self._written = 0

    def save(self, checkpoint: dict[str, Any], path: Path, shards: LatentShards, file: CheckpointIO) -> None:
        """Write a checkpoint, and remove the one before. Collective.

        Args:
            checkpoint: that of this process.
            path: the file that names the others.
            shards: the processes.
            file: writes that file.

        Raises: RunFailed on all processes if one of them cannot write, for example on a full disk.
        """
        self._written += 1
        own = path.with_name(_name(path, shards.rank, shards.size, self._written))
        checksum, failed = "", None
        try:
            checksum = write_checkpoint({key: checkpoint[key] for key in OWN}, own)
        except RunFailed as error:
            failed = error
        found = shards.gather_objects((own.name, checksum, None if failed is None else failed.what))
        complaints = [complaint for _, _, complaint in found if complaint is not None]
        if complaints:
            own.unlink(missing_ok=True)
            raise failed or RunFailed(f"another process has failed: {complaints[0]}")
        if shards.rank == 0:
            files = {name: value for name, value, _ in found}
            empty: dict[str, Any] = {"state_dict": {}, "optimizer_states": []}
            named = {"processes": shards.size, "written": self._written, "files": files}
            file.save_checkpoint({**checkpoint, **empty, PARTS: named}, path)
            for other in path.parent.glob(files_of(path)):
                if other.name not in files:
                    other.unlink(missing_ok=True)

    def load(self, common: dict[str, Any], path: Path, shards: LatentShards) -> dict[str, Any]:
        """Return the checkpoint of this process.

        Args:
            common: content of the file that names the others.
            path: that file.
            shards: the processes.

        Raises: ConfigError for a checkpoint of another number of processes, or of processes that share no latents;
            SchemaError for a file that is missing, damaged, or not the one that was written.
        """
        named = common.pop(PARTS, None)
        if named is None:
            raise ConfigError(
                f"the checkpoint '{path}' is of a run with a whole autoencoder; this one shares its latents.",
                fix=f"the trainer.strategy that it had; or {_RESTART}",
            )
        if named["processes"] != shards.size:
            raise ConfigError(
                f"the checkpoint '{path}' is of {named['processes']} processes that share latents; this run has"
                f" {shards.size}.",
                "each process continues with its own range of latents",
                fix=f"trainer.devices x trainer.num_nodes = {named['processes']}; or {_RESTART}",
            )
        self._written = int(named["written"])
        own = path.with_name(_name(path, shards.rank, shards.size, self._written))
        if not own.exists():
            raise SchemaError(f"the checkpoint '{path}' is not whole: there is no '{own.name}'.", fix=_RESTART)
        if verify_checkpoint(own) != named["files"].get(own.name):
            raise SchemaError(
                f"'{own}' is not the file that the checkpoint '{path.name}' was written with.", fix=_RESTART
            )
        return {**common, **read_checkpoint(own, map_location="cpu", keys=OWN)}


def files_of(path: Path) -> str:
    """Return a pattern of the names of the files of all processes beside a checkpoint."""
    return f"{path.stem}.latents-*{path.suffix}"


def _name(path: Path, rank: int, size: int, written: int) -> str:
    """Return a name that the checkpoint before does not have, so that it stays whole until the new one is."""
    return f"{path.stem}.latents-{rank}-of-{size}.{written}{path.suffix}"
