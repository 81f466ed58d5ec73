"""The tables of the leaderboard, and its record."""

import csv
import io
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.leaderboard_table import (
    DictionaryRow,
    FactorCell,
    Leaderboard,
    Number,
    factor_table,
    leaderboard_csv,
    main_table,
    read_leaderboard,
)


def number(value: float) -> Number:
    return Number(value=value, low=value - 0.05, high=value + 0.04, seeds=(value, value))


def row(name: str, kind: str, aurocs: tuple[float, ...]) -> DictionaryRow:
    cells = tuple(
        FactorCell(factor=f"f{i}", auroc=number(x), q=(0.001, 0.002), n_seeds=2 * (x >= 0.9), has_latent=x >= 0.9,
                   n_values=3, n_values_with_latent=3 * (x >= 0.9), pointing=number(0.7), pointing_null=0.25)
        for i, x in enumerate(aurocs)
    )  # fmt: skip
    return DictionaryRow(name=name, kind=kind, n_latents=64, active=16.04, auroc=number(sum(aurocs) / len(aurocs)),
                         absorption=number(0.1), factors=cells, pointing=number(0.7), pointing_null=0.25,
                         fvu=None if kind == "control" else number(0.3), steps=(90, 1110))  # fmt: skip


def board() -> Leaderboard:
    rows = (row("neurons", "control", (0.95, 0.95)), row("TopK", "ours", (0.95, 0.6)), row("=Lens", "peer", (1, 0.92)))
    return Leaderboard(board="scenes", facts={"backbone": "b"}, rules={"least_auroc": 0.9, "most_q": 0.01},
                       machine="m", rows=rows, absent={}, not_measured={})  # fmt: skip


def test_rows_are_ordered_with_controls_last() -> None:
    assert [one.name for one in board().ordered()] == ["=Lens", "TopK", "neurons"]
    lines = main_table(board()).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["=Lens", "TopK", "neurons"]
    assert "| TopK | 1 of 2 | 3 of 6 | 0.775 (0.725 to 0.815) | 0.70 (0.65 to 0.74) | 0.25 |" in lines[3]
    assert "| 16.0 | 90 to 1,110 |" in lines[3] and "|  | 16.0 |" in lines[4]  # no decoder, no fvu


def test_every_factor_has_a_line() -> None:
    lines = factor_table(board()).splitlines()
    assert len(lines) == 2 + 6
    assert lines[4] == "| TopK | f0 | 0.950 (0.900 to 0.990) | 0.002 | 2 of 2 | 3 of 3 | 0.70 (0.65 to 0.74) | 0.25 |"
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(board()))))
    assert len(rows) == 6 and rows[0]["dictionary"] == "'=Lens"  # no formula of a spreadsheet
    assert rows[2] | {"auroc": "0.9500", "has_latent": "True", "seeds": "2"} == rows[2]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(board().to_json())
    assert read_leaderboard(path) == board()
    path.write_text(board().to_json().replace('"board"', '"bord"'))
    with pytest.raises(ConfigError, match="bord"):
        read_leaderboard(path)
