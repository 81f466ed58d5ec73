"""Finished sae runs on disk: where their autoencoders are, and which cells each was trained on.

Owns the way from a folder that `diffprobe train` wrote to its autoencoders, those of a grid's members too. Next in the
flow: `evaluate_sae.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.core.result import INPUT, RESULT_FILE, RunResult, read_result
from diffprobe.runs.grid import MEMBERS

if TYPE_CHECKING:
    from diffprobe.backbones.cell import Cell


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished sae run, or a member of a grid."""

    folder: Path
    """Where it is."""
    result: RunResult
    """Its result."""
    config: RunConfig
    """Its configuration."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its autoencoders: their folders, seen from its own. A grid names those of all members."""
        return tuple(name for name in self.result.artifacts if not name.startswith(INPUT))

    def saes(self) -> dict[str, Path]:
        """Return the folders of its autoencoders by name.

        Raises: WeightsMissing, SchemaError if one is not there or not the one that the result is about.
        """
        from diffprobe.probes.serialization import TENSORS

        folders = {name: self.folder / name for name in self.names}
        for name, folder in folders.items():
            if not (folder / TENSORS).is_file():
                raise WeightsMissing(
                    f"the run '{self.folder}' has no weights '{name}/{TENSORS}'.", fix="train it again"
                )
            if digest_file(folder / TENSORS) != self.result.artifacts[name]:
                raise SchemaError(f"'{folder / TENSORS}' is not the file that the run's {RESULT_FILE} is about.")
        return folders

    def cells(self, sae: Path) -> "tuple[Cell, ...]":
        """Return the cells that an autoencoder was trained on, by its own file, else all of the run.

        Raises: SchemaError if they are not of one tap, condition and pooling.
        """
        from diffprobe.backbones.cell import Cell
        from diffprobe.probes.serialization import SETTINGS

        named = json.loads((sae / SETTINGS).read_text(encoding="utf-8"))["settings"].get("cell")
        names = [named] if named else sorted({record.cell for record in self.result.metrics if record.cell})
        cells = sorted((Cell.parse(name) for name in names), key=lambda cell: cell.timestep)
        if len({(cell.tap, cell.condition, cell.pool) for cell in cells}) != 1:
            raise SchemaError(f"'{sae}' does not say which cells it was trained on.", f"cells of the run: {names}")
        return tuple(cells)


def open_runs(run: str) -> list[Trained]:
    """Read the result of a run, or those of all members if it is a grid's: no member is left out.

    Raises: ConfigError for a folder that holds no finished sae run; SchemaError for a result that names no autoencoder;
        WeightsMissing for a grid that lacks a member.
    """
    folder = Path(run)
    if not run or not (folder / RESULT_FILE).is_file():
        raise ConfigError(
            f"'{run}' is not the folder of a finished run: it has no {RESULT_FILE}.",
            fix="name the folder that `diffprobe train` printed: diffprobe eval sae runs/emoji/sae/DIGEST",
        )
    whole = _read(folder)
    if not whole.names:
        raise SchemaError(f"'{folder / RESULT_FILE}' names no autoencoder.", fix="train it again")
    paths = [Path(name).parts for name in whole.names]
    members = list(dict.fromkeys(parts[1] for parts in paths if parts[0] == MEMBERS))
    missing = [name for name in members if not (folder / MEMBERS / name / RESULT_FILE).is_file()]
    if missing:
        raise WeightsMissing(
            f"the grid '{folder}' lacks {len(missing)} of its {len(members)} members.",
            f"missing: {'; '.join(missing)}",
            fix=f"train it again, or name one that is there: diffprobe eval sae '{folder / MEMBERS}/NAME'",
        )
    return [_read(folder / MEMBERS / name) for name in members] or [whole]


def _read(folder: Path) -> Trained:
    result = read_result(folder / RESULT_FILE)
    if result.kind != "sae":
        raise ConfigError(f"'{folder}' is a run of kind '{result.kind}'; only those of kind 'sae' reconstruct.")
    return Trained(
        folder=folder, result=result, config=parse(RunConfig, result.config, at=f"{folder / RESULT_FILE}: config")
    )
