"""Record the leaderboard: python docs/record_leaderboard.py FOLDER, with the files scenes.json and emoji.json that
`diffprobe bench dictionaries scenes --json FOLDER/scenes.json`, and the same of emoji, wrote.

The records go to docs/results/leaderboard, their tables into docs/leaderboard.md, each below its marker, and the
picture of scenes to docs/leaderboard.png.
"""

import argparse
import shutil
import sys
from pathlib import Path

from diffprobe.report.leaderboard_figure import leaderboard_figure
from diffprobe.report.leaderboard_table import Leaderboard, factor_table, leaderboard_csv, main_table, read_leaderboard

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "leaderboard"
PAGE = DOCS / "leaderboard.md"
PICTURE = DOCS / "leaderboard.png"
BOARDS = ("scenes", "emoji")


def tables(name: str, board: Leaderboard) -> dict[str, list[str]]:
    """Return the tables of a board by their markers."""
    return {
        f"{name}/dictionaries": main_table(board).splitlines(), f"{name}/factors": factor_table(board).splitlines(),
    }  # fmt: skip


def facts(board: Leaderboard) -> list[str]:
    """Return what was measured, one line each."""
    found = [f"- {name}: {fact}" for name, fact in board.facts.items()]
    found += [f"- {row.name} {row.version}" for row in board.rows if row.version]
    return [*found, *(f"- not measured: {name}, {reason}" for name, reason in board.not_measured.items())]


def with_facts(text: str, name: str, lines: list[str]) -> str:
    """Replace the list below the marker of its name."""
    before, marker, after = text.partition(f"<!-- facts: {name} -->\n")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("- "):
        rest.pop(0)
    return before + marker + "".join(f"{line}\n" for line in lines) + "".join(rest)


def record(folder: Path) -> None:
    """Copy the records of a folder, and write tables, facts and picture."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in BOARDS:
        if (folder / f"{name}.json").resolve() != (RESULTS / f"{name}.json").resolve():
            shutil.copyfile(folder / f"{name}.json", RESULTS / f"{name}.json")
        board = read_leaderboard(RESULTS / f"{name}.json")
        (RESULTS / f"{name}.csv").write_text(leaderboard_csv(board), encoding="utf-8")
        text = with_facts(PAGE.read_text("utf-8"), name, facts(board))
        for marker, lines in tables(name, board).items():
            text = with_table(text, marker, lines)
        PAGE.write_text(text, encoding="utf-8")
    heading = "Factors of scenes-sd with a latent, by dictionary"
    figure = leaderboard_figure(read_leaderboard(RESULTS / "scenes.json"), heading)
    figure.savefig(PICTURE, dpi=110, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of scenes.json and emoji.json")
    record(parser.parse_args().folder)
