"""The page of the leaderboard: its tables, facts and words are those of the records, and its commands are valid."""

import re
import shlex

import pytest

from diffprobe.benchmarks.leaderboard import BOARDS
from diffprobe.cli.arguments import settings_tree
from diffprobe.cli.main import make_parser
from diffprobe.evaluation.certify import load_settings
from diffprobe.report.leaderboard_table import factor_table, leaderboard_csv, main_table, read_leaderboard
from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/leaderboard.md").read_text("utf-8")
RESULTS = ROOT / "docs/results/leaderboard"
NAMES = ("scenes", "emoji")


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_facts_are_those_of_the_record(name: str) -> None:
    board = read_leaderboard(RESULTS / f"{name}.json")
    for marker, table in (("dictionaries", main_table(board)), ("factors", factor_table(board))):
        assert PAGE.partition(f"<!-- table: {name}/{marker} -->\n")[2].startswith(table + "\n"), marker
    facts = PAGE.partition(f"<!-- facts: {name} -->\n")[2].partition("\n\n")[0].splitlines()
    assert [f"- {key}: {fact}" for key, fact in board.facts.items()] == facts[: len(board.facts)]
    assert (RESULTS / f"{name}.csv").read_text("utf-8") == leaderboard_csv(board)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_of_its_board_with_three_seeds(name: str) -> None:
    found, board = read_leaderboard(RESULTS / f"{name}.json"), BOARDS[name]
    assert tuple(cell.factor for cell in found.rows[0].factors) == board.factors
    assert {len(row.auroc.seeds) for row in found.rows if row.kind != "control"} == {3}
    assert found.rules == {"least_auroc": 0.9, "most_q": 0.01, "share_of_seeds": pytest.approx(2 / 3)}


def test_the_picture_is_small() -> None:
    assert 10_000 < (ROOT / "docs/leaderboard.png").stat().st_size < 200_000


def test_its_commands_are_valid() -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    diffprobe (.+)$", PAGE, re.MULTILINE)]
    assert len(commands) == 5
    for verb, *rest in commands:
        args = make_parser(verb).parse_args(rest)
        if verb == "certify":
            load_settings("dictionary", settings_tree(args.keys))
