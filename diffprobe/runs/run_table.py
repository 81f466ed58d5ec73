"""`diffprobe run`: all rows of a table in this process, one after the other, by the code of `extract` and `train`.

What is finished is left as it is, what was interrupted continues, and a row that fails does not stop the others.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffprobe.config.controls import has_one_cell
from diffprobe.config.parse import record_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, RunFailed
from diffprobe.core.failure import note_failure
from diffprobe.core.result import RESULT_FILE
from diffprobe.core.signals import end_behind
from diffprobe.runs.experiment import train
from diffprobe.runs.extract import backbone_and_features, extract_run
from diffprobe.runs.submit import store_is_complete, store_key
from diffprobe.runs.table_cost import Cost, run_cost
from diffprobe.runs.table_rows import InvalidRow, RunRow, try_rows

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row of a table, and what is left to do."""

    settings: list[str]
    """Settings of `diffprobe train` that make it."""
    name: str
    """What a command prints for it: its experiment, and the settings that are its own."""
    state: Literal["finished", "interrupted", "missing", "invalid"]
    """finished: it has a result; interrupted: it has a checkpoint alone; invalid: it cannot be run."""
    config: RunConfig | None = None
    """Its configuration; None for an invalid one."""
    folder: Path | None = None
    """Folder of the run; None for an invalid configuration."""
    cost: Cost = Cost()
    """What is left to do. A store that several rows read is counted with the first of them."""
    error: DiffprobeError | None = None
    """Why it cannot be run."""

    @property
    def is_due(self) -> bool:
        """Whether it is to be run."""
        return self.state in ("interrupted", "missing")

    @property
    def command(self) -> str:
        """The command that trains this row alone."""
        return f"diffprobe train {' '.join(self.settings)}"


@dataclass(frozen=True, kw_only=True)
class RowOutcome:
    """How a row ended."""

    row: PlannedRow
    """The row."""
    error: Exception | None = None
    """Why it failed; None for a row that has its result."""


def plan_table(name: str, settings: Sequence[str], *, again: bool = False) -> list[PlannedRow]:
    """Validate all rows of a table and say what is left to do. No features, weights or images are read.

    Configurations, the index of the data and the taps of the checkpoint are validated; a row that is refused by one of
    them is `invalid`.

    Args:
        name, settings: see `table_rows.find_rows`.
        again: whether finished rows are run again.

    Raises: ConfigError for an unknown table, a table without rows, or rows that are the same run.
    """
    stores: set[str] = set()
    return [_planned(row, settings, stores, again=again) for row in try_rows(name, settings)]


def _planned(row: RunRow | InvalidRow, shared: Sequence[str], stores: set[str], *, again: bool) -> PlannedRow:
    name = " ".join([row.settings[0].removeprefix("experiment="), *(s for s in row.settings[1:] if s not in shared)])
    if isinstance(row, InvalidRow):
        return PlannedRow(settings=row.settings, name=name, state="invalid", error=row.error)
    config = row.config
    assert isinstance(config, RunConfig)  # a table has rows of probes alone
    if (row.folder / RESULT_FILE).is_file() and not again:
        return PlannedRow(settings=row.settings, name=name, state="finished", config=config, folder=row.folder)
    extracts = config.features.source == "stored" and _claims_store(config, stores)
    cost = run_cost(config, extracts=extracts)
    try:
        _check(config)
    except DiffprobeError as error:
        return PlannedRow(
            settings=row.settings, name=name, state="invalid", config=config, folder=row.folder, cost=cost, error=error
        )
    from diffprobe.training.checkpoint import LAST

    started = (row.folder / LAST).exists()
    return PlannedRow(
        settings=row.settings, name=name, state="interrupted" if started else "missing", config=config,
        folder=row.folder, cost=cost,
    )  # fmt: skip


def _claims_store(config: RunConfig, stores: set[str]) -> bool:
    """Return whether this row is the first that needs a store which is not complete."""
    key = store_key(config)
    if key in stores:
        return False
    stores.add(key)
    return not store_is_complete(config)


def _check(config: RunConfig) -> None:
    """Validate what a run opens before it computes: processes, splits, condition, taps. Raises: DiffprobeError."""
    from diffprobe.features.cell_selection import choose_cells
    from diffprobe.features.request import Request
    from diffprobe.runs.plan import training_of
    from diffprobe.runs.provenance import require_splits

    if (config.trainer.devices, config.trainer.num_nodes) != (1, 1):
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}, trainer.num_nodes={config.trainer.num_nodes}: the rows of a "
            "table are trained one after the other, in one process.",
            fix="--submit cluster=NAME; or trainer=gpu trainer.devices=1",
        )
    backbone, features = backbone_and_features(config)
    request = Request(backbone, config.data, features)
    one = has_one_cell(config.control)
    asked = None if one or config.probe.cell is None else [config.probe.cell]
    asked = list(config.probe.grid.get("cell", ())) or asked
    cells = choose_cells(asked, [cell.name for cell in request.plan.cells])
    training_of(config.probe.kind).check_cells(config, cells)
    require_splits(config.data, request.shard_set)
    request.check_values()


def run_rows(
    rows: Sequence[PlannedRow], *, announce: Announce = lambda line: None, progress: bool = True
) -> list[RowOutcome]:
    """Run what is due, one row after the other. A row that fails is reported, and the next one begins.

    Args:
        rows: what `plan_table` returned.
        announce: takes lines for people.
        progress: whether extractions show a bar. That of a training is `trainer.enable_progress_bar`.

    Returns: how each row ended, invalid ones included.
    Raises: KeyboardInterrupt and Terminated, which end all rows; RunFailed where the reader of the output is gone.
    """
    due = [row for row in rows if row.is_due]
    outcomes = []
    for row in rows:
        if not row.is_due:
            outcomes.append(RowOutcome(row=row, error=row.error))
            continue
        announce(f"[{due.index(row) + 1}/{len(due)}] {row.name}: {row.folder}")
        error = _run(row, announce, progress)
        if error is not None:
            announce(f"failed: {row.name}: {type(error).__name__}: {error}")
        outcomes.append(RowOutcome(row=row, error=error))
        gc.collect()  # the backbone of a row is large, and the next one opens its own
    return outcomes


def _run(row: PlannedRow, announce: Announce, progress: bool) -> Exception | None:
    """Extract what is missing and train. Returns: what stopped the row, if anything did."""
    config = row.config
    assert config is not None and row.folder is not None
    try:
        if config.features.source == "stored":
            extract_run(config, progress=progress, announce=announce)
        train(config)
    except BrokenPipeError as error:  # nobody sees which row failed, and the next ones would fail alike
        raise RunFailed(
            "the rows ended before their results: the reader of the output is gone.",
            fix="run the command again to continue",
        ) from error
    except Exception as error:  # of a library too: the other rows do not depend on it
        if end_behind(error) is not None:  # the command is being ended, which it hides
            raise
        note_failure(row.folder, record_tree(config), error)
        return error
    return None
