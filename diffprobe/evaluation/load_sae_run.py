"""Finished sae runs on disk: their results, their autoencoders, and the cells that each was trained on.

Reads the folder that `diffprobe train` wrote, of a single run or of a grid. `sae.py` evaluates what it returns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.result import INPUT, MEMBERS, RESULT_FILE, RunResult, is_predictions, read_result
from diffprobe.report.query import parse_cell

if TYPE_CHECKING:
    from diffprobe.backbones.cell import Cell


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished sae run, or one member of a grid."""

    folder: Path
    """Folder of the run."""
    result: RunResult
    """The result of the run."""
    config: RunConfig
    """The configuration of the run."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the autoencoders: their folders, relative to that of the run. A grid lists those of all members."""
        return tuple(name for name in self.result.artifacts if not name.startswith(INPUT) and not is_predictions(name))

    def saes(self) -> dict[str, Path]:
        """Return the folders of the autoencoders by name.

        Raises: WeightsMissing if weights are missing, SchemaError if their digest is not that of the result.
        """
        from diffprobe.probes.serialization import TENSORS

        folders = {name: self.folder / name for name in self.names}
        for name in folders:
            if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
                raise SchemaError(f"'{self.folder / RESULT_FILE}': the autoencoder '{name}' is not in the folder.")
        for name, folder in folders.items():
            if not _is_file(folder / TENSORS):
                raise WeightsMissing(
                    f"the run '{self.folder}' has no weights '{name}/{TENSORS}'.", fix="train it again"
                )
            if digest_file(folder / TENSORS) != self.result.artifacts[name]:
                raise SchemaError(f"'{folder / TENSORS}' does not have the digest that {RESULT_FILE} records.")
        return folders

    def cells(self, sae: Path) -> "tuple[Cell, ...]":
        """Return the cells that an autoencoder was trained on: from its own file, or else all cells of the run.

        Raises: SchemaError if they differ in tap, condition or pooling.
        """
        from diffprobe.probes.serialization import SETTINGS

        path = sae / SETTINGS
        settings = expect(read_json_object(path).get("settings"), dict, where=f"'{path}': settings")
        named = settings.get("cell")
        if named:
            names = [expect(named, str, where=f"'{path}': settings.cell")]
        else:
            names = sorted({record.cell for record in self.result.metrics if record.cell})
        cells = sorted((parse_cell(name) for name in names), key=lambda cell: cell.timestep)
        if len({(cell.tap, cell.condition, cell.pool) for cell in cells}) != 1:
            raise SchemaError(
                f"the cells that '{sae}' was trained on cannot be determined.", f"cells of the run: {names}"
            )
        return tuple(cells)


def open_runs(run: str) -> list[TrainedRun]:
    """Read the result of a run, or the results of all members of a grid.

    Raises: ConfigError for a folder without a finished sae run; SchemaError for a result without autoencoders;
        WeightsMissing for a grid with a missing member.
    """
    folder = Path(run)
    if not run or not (folder / RESULT_FILE).is_file():
        raise ConfigError(
            f"'{run}' is not the folder of a finished run: it has no {RESULT_FILE}.",
            fix="use the folder that `diffprobe train` printed: diffprobe eval sae runs/emoji/sae/DIGEST",
        )
    whole = _read(folder)
    if not whole.names:
        raise SchemaError(f"'{folder / RESULT_FILE}' lists no autoencoder.", fix="train it again")
    paths = [Path(name).parts for name in whole.names]
    members = list(dict.fromkeys(parts[1] for parts in paths if len(parts) > 1 and parts[0] == MEMBERS))
    if ".." in members:
        raise SchemaError(f"'{folder / RESULT_FILE}' lists a member outside of its folder.", fix="train it again")
    missing = [name for name in members if not _is_file(folder / MEMBERS / name / RESULT_FILE)]
    if missing:
        raise WeightsMissing(
            f"the grid '{folder}' lacks {len(missing)} of its {len(members)} members.",
            f"missing: {'; '.join(missing)}",
            fix=f"train it again, or evaluate a single member: diffprobe eval sae '{folder / MEMBERS}/NAME'",
        )
    return [_read(folder / MEMBERS / name) for name in members] or [whole]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        return False


def _read(folder: Path) -> TrainedRun:
    result = read_result(folder / RESULT_FILE)
    if result.kind != "sae":
        raise ConfigError(f"'{folder}' is a run of kind '{result.kind}'; allowed: 'sae'.")
    return TrainedRun(
        folder=folder, result=result, config=parse(RunConfig, result.config, at=f"{folder / RESULT_FILE}: config")
    )
