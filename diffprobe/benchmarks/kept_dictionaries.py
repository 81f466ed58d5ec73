"""Dictionaries and rows of the leaderboard on disk, so that a run that was stopped continues where it was.

Each has a file with the settings that decide it, and their digest; with other settings it is made anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffprobe.benchmarks.timed_dictionaries import Trained
from diffprobe.config.parse import parse
from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.digest import digest_json
from diffprobe.core.json_file import read_json_object
from diffprobe.probes.sae.open_folder import open_autoencoder
from diffprobe.report.leaderboard_table import DictionaryRow

TRAINING = "training.json"
"""File beside a trained dictionary: its settings, steps and time."""
ROW = "row.json"
"""File beside the dictionaries of a row: its settings and numbers."""


class Kept:
    """Trained dictionaries and measured rows of one board.

    Args:
        folder: of the board; a row is in the folder of its name, and its dictionaries below it, one per seed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def trained(self, name: str, settings: Mapping[str, Any], train: Callable[[], Trained]) -> Trained:
        """Return a dictionary that was trained before with the same settings, or train and save it.

        Args:
            name: of its row.
            settings: all that decides its weights, as JSON can hold it; "seed" and "cell" among it.
            train: trains it.
        """
        folder = self._of(name) / f"seed{settings['seed']}"
        found = _same(folder / TRAINING, settings)
        if found is not None:
            return Trained(open_autoencoder(folder)[0].eval(), int(found["steps"]), float(found["seconds"]))
        (folder / TRAINING).unlink(missing_ok=True)  # it would name other weights if the next lines are interrupted
        result = train()
        result.sae.save_pretrained(folder, cell=settings["cell"])
        _write(folder / TRAINING, settings, {"steps": result.steps, "seconds": result.seconds})
        return result

    def row(self, name: str, settings: Mapping[str, Any], measure: Callable[[], DictionaryRow]) -> DictionaryRow:
        """Return a row that was measured before with the same settings, or measure and save it.

        Args:
            name: of the row.
            settings: all that decides its numbers, as JSON can hold it.
            measure: measures it.
        """
        file = self._of(name) / ROW
        found = _same(file, settings)
        if found is not None:
            return parse(DictionaryRow, found["row"])
        result = measure()
        _write(file, settings, {"row": asdict(result)})
        return result

    def _of(self, name: str) -> Path:
        return self._folder / "-".join(name.lower().replace(",", "").split())


def _same(file: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of a file if it was written for these settings."""
    if not file.is_file():
        return None
    found = read_json_object(file)
    return found if found.get("digest") == digest_json(settings) else None


def _write(file: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(file, {"digest": digest_json(settings), "settings": settings, **content})
