"""The leaderboard of dictionaries: its record, and its tables as Markdown and CSV. Reads JSON alone."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from diffprobe.config.parse import parse
from diffprobe.core.json_file import read_json_object
from diffprobe.report.markdown_table import markdown_table
from diffprobe.report.table import csv_value

KINDS = ("ours", "peer", "own", "control")
"""Kinds of rows: dictionaries of this library, of others, the reader's own, and controls."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A mean over seeds with its interval over samples."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """The value of each seed."""

    def text(self, digits: int = 2) -> str:
        """Return the number and its interval.

        >>> Number(value=0.5, low=0.41, high=0.6, seeds=(0.5,)).text()
        '0.50 (0.41 to 0.60)'
        """
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True, kw_only=True)
class FactorCell:
    """One factor of one dictionary."""

    factor: str
    auroc: Number
    q: tuple[float, ...]
    """Adjusted p of each seed."""
    n_seeds: int
    """Seeds in which the factor has a latent."""
    has_latent: bool
    """Whether these are enough."""
    n_values: int
    n_values_with_latent: int
    pointing: Number | None = None
    """None without masks."""
    pointing_null: float | None = None
    """The same with masks of other images."""


@dataclass(frozen=True, kw_only=True)
class DictionaryRow:
    """One dictionary, over its seeds."""

    name: str
    kind: str
    """One of `KINDS`."""
    n_latents: int
    active: float
    """Mean number of active latents per row."""
    auroc: Number
    absorption: Number
    factors: tuple[FactorCell, ...]
    pointing: Number | None = None
    pointing_null: float | None = None
    fvu: Number | None = None
    """None without a decoder."""
    steps: tuple[int, ...] = ()
    """Training steps of each seed; empty for a row that is not trained here."""
    seconds: float | None = None
    """Processor time of the training of a seed; None for a row that is not trained here."""
    version: str | None = None
    """Version of the other library."""
    note: str = ""
    """What the row is, for controls."""

    @property
    def n_with_latent(self) -> int:
        """Number of factors with a latent."""
        return sum(cell.has_latent for cell in self.factors)

    @property
    def n_values_with_latent(self) -> int:
        """Number of values with a latent."""
        return sum(cell.n_values_with_latent for cell in self.factors)

    @property
    def n_values(self) -> int:
        """Number of values of all factors."""
        return sum(cell.n_values for cell in self.factors)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All rows of one board."""

    board: str
    facts: dict[str, str]
    """What was measured: backbone, cell, samples, training."""
    rules: dict[str, float]
    """When a factor has a latent."""
    machine: str
    rows: tuple[DictionaryRow, ...]
    absent: dict[str, str]
    """Libraries that were not measured -> reason."""
    not_measured: dict[str, str]
    """Measure -> reason."""

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def ordered(self) -> list[DictionaryRow]:
        """Return the rows as they are shown: by factors with a latent, then values, then AUROC; controls last."""

        def place(row: DictionaryRow) -> tuple[bool, int, int, float]:
            return row.kind == "control", -row.n_with_latent, -row.n_values_with_latent, -row.auroc.value

        return sorted(self.rows, key=place)


def read_leaderboard(path: Path) -> Leaderboard:
    """Read a record. Raises: SchemaError for a file that is not JSON; ConfigError, naming what does not fit."""
    return parse(Leaderboard, read_json_object(path))


def main_table(board: Leaderboard) -> str:
    """Return the table of dictionaries as Markdown."""
    heads = ["dictionary", "factors with a latent", "values with a latent", "AUROC", "pointing", "other masks"]
    heads += ["absorption", "held-out fvu", "active", "steps"]
    rows = []
    for row in board.ordered():
        counts = [f"{row.n_with_latent} of {len(row.factors)}", f"{row.n_values_with_latent} of {row.n_values}"]
        pointing = [_text(row.pointing, 2), _null(row.pointing_null)]
        steps = f"{min(row.steps):,} to {max(row.steps):,}" if row.steps else ""
        rest = [row.absorption.text(3), _text(row.fvu, 3), f"{row.active:.1f}", steps]
        rows.append([row.name, *counts, row.auroc.text(3), *pointing, *rest])
    return markdown_table(heads, rows)


def factor_table(board: Leaderboard) -> str:
    """Return the table of factors as Markdown: AUROC, seeds in which the factor has a latent, and pointing."""
    rows = []
    for row in board.ordered():
        for cell in row.factors:
            q = f"{max(cell.q):.2g}"
            seeds = f"{cell.n_seeds} of {len(cell.q)}"
            values = f"{cell.n_values_with_latent} of {cell.n_values}"
            pointing = [_text(cell.pointing, 2), _null(cell.pointing_null)]
            rows.append([row.name, cell.factor, cell.auroc.text(3), q, seeds, values, *pointing])
    heads = ["dictionary", "factor", "AUROC", "largest q", "seeds with a latent", "values with a latent", "pointing",
             "other masks"]  # fmt: skip
    return markdown_table(heads, rows)


def leaderboard_csv(board: Leaderboard) -> str:
    """Return one line per dictionary and factor as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["board", "dictionary", "kind", "factor", "auroc", "low", "high", "largest_q", "seeds_with_latent",
                     "seeds", "has_latent", "values_with_latent", "values", "pointing"])  # fmt: skip
    for row in board.ordered():
        for cell in row.factors:
            pointing = "" if cell.pointing is None else f"{cell.pointing.value:.4f}"
            writer.writerow([
                board.board, csv_value(row.name), row.kind, cell.factor, *(f"{x:.4f}" for x in _ends(cell.auroc)),
                f"{max(cell.q):.4g}", cell.n_seeds, len(cell.q), cell.has_latent, cell.n_values_with_latent,
                cell.n_values, pointing,
            ])  # fmt: skip
    return file.getvalue()


def _ends(number: Number) -> tuple[float, float, float]:
    return number.value, number.low, number.high


def _text(number: Number | None, digits: int) -> str:
    return "" if number is None else number.text(digits)


def _null(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"
