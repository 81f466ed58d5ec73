"""The history of a W&B run over restarts: what W&B has is what a checkpoint covers, so nothing is there twice.

A run that is killed repeats the steps after its last checkpoint. W&B cannot take back what it has received, offline it
cannot even be asked; so rows wait in a file of the run's folder until a checkpoint has been written after them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import SchemaError
from diffprobe.core.json_file import parse_json

PENDING = "wandb-pending.jsonl"
"""File of the rows that wait: a line with the number of rows that W&B has, then a line per row."""
_X = "trainer/global_step"


class CheckpointedWandbLogger(WandbLogger):
    """Lightning's logger, with rows that wait for a checkpoint.

    Args:
        experiment: the open run.
        run_dir: folder of the run, with its checkpoints.
        resume: the run continues; its waiting rows are read.

    Raises: SchemaError if the file of waiting rows is damaged elsewhere than in its last line.
    """

    def __init__(self, experiment: Any, run_dir: Path, *, resume: bool) -> None:
        super().__init__(experiment=experiment, save_dir=run_dir)
        self._file = run_dir / PENDING
        self._n_sent, self._rows = read_pending(self._file) if resume else (0, [])
        self._write()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep a row until a checkpoint covers it. Rows without a step are sent at once."""
        if step is None:
            super().log_metrics(metrics)
            return
        row = {"step": int(step), "metrics": {name: float(value) for name, value in metrics.items()}}
        self._rows = [known for known in self._rows if not _same_place(known, row)]  # a validation that is repeated
        self._rows.append(row)
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def continue_from(self, step: int) -> None:
        """Forget the rows that training from this optimiser step makes again.

        Args:
            step: steps that the checkpoint has behind it, 0 without a checkpoint.
        """
        self._rows = [row for row in self._rows if row["step"] < step]
        self._write()

    def checkpoint_written(self, step: int) -> None:
        """Send the rows before a checkpoint; its own last step waits, since its validation may be repeated."""
        self._send([row for row in self._rows if row["step"] < step - 1])

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Send the rows that the checkpoint covers; Lightning calls this."""
        self.checkpoint_written(checkpoint_callback._last_global_step_saved)

    def send_all(self) -> None:
        """Send what waits: the run is complete."""
        self._send(list(self._rows))
        self._file.unlink(missing_ok=True)

    def _send(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        first = self._n_sent
        self._n_sent += len(rows)
        self._rows = [row for row in self._rows if row not in rows]
        self._write()  # before sending: a kill between the two loses rows of W&B, and doubles none
        for i, row in enumerate(rows):
            self.experiment.log({**row["metrics"], _X: row["step"]}, step=first + i)

    def _write(self) -> None:
        with atomic_file(self._file) as temporary:
            lines = [{"sent": self._n_sent}, *self._rows]
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_pending(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Read the rows that wait: the number of rows that W&B has, and the rows. A last line without its end is left out.

    Raises: SchemaError for another line that is not a row.
    """
    if not path.exists():
        return 0, []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a killed process leaves part of a line
    rows: list[dict[str, Any]] = []
    n_sent = 0
    for i, line in enumerate(lines):
        where = f"'{path}', line {i + 1}"
        tree = parse_json(line, where=where, non_finite=True, fix="remove the file; the rows are then missing in W&B")
        if i == 0 and isinstance(tree, dict) and isinstance(tree.get("sent"), int):
            n_sent = tree["sent"]
        elif isinstance(tree, dict) and isinstance(tree.get("step"), int) and isinstance(tree.get("metrics"), dict):
            rows = [row for row in rows if not _same_place(row, tree)] + [tree]
        else:
            raise SchemaError(f"{where} is not a row of W&B's history.", fix="remove the file")
    return n_sent, rows


def _same_place(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["step"] == other["step"] and one["metrics"].keys() == other["metrics"].keys())
