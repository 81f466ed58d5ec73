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


def test_the_text_on_scenes_is_that_of_the_record() -> None:
    rows = {row.name: row for row in read_leaderboard(RESULTS / "scenes.json").rows}
    found = {name: {cell.factor for cell in row.factors if cell.has_latent} for name, row in rows.items()}
    libraries = [name for name, row in rows.items() if row.kind == "peer"]
    for name in ("TopK", *libraries):
        assert found[name] == {"build", "size", "pose", "background"}, name
    assert len(libraries) == 4 and not any(own & {"texture", "place", "colour", "side"} for own in found.values())
    assert found["random directions"] == {"pose", "background"} and not found["TopK, random denoiser"]
    highest = max(rows["TopK, random denoiser"].factors, key=lambda cell: cell.auroc.value)
    assert highest.factor == "side" and f"that of side, {highest.auroc.value:.2f}" in PAGE
    assert 1.8 < min(rows["TopK"].steps) / max(rows["SAELens"].steps) < 2.2
    trained = [row for row in rows.values() if row.kind != "control"]
    assert min(trained, key=lambda row: row.fvu.value if row.fvu else 1).name == "dictionary_learning"
    assert max(trained, key=lambda row: row.auroc.value).name == "SAELens"
    assert max(trained, key=lambda row: row.n_values_with_latent).name == "SAELens"
    assert max(row.absorption.value for row in rows.values()) < 0.01
    for name in ("BatchTopK", "Matryoshka", "JumpReLU"):
        assert max(rows[name].steps) < 0.55 * min(rows["TopK"].steps) and rows[name].active < 16
    assert rows["TopK"].n_latents == 640 and "640 directions" in PAGE


def test_the_text_on_emoji_is_that_of_the_record() -> None:
    rows = {
        row.name: {cell.factor: cell for cell in row.factors} for row in read_leaderboard(RESULTS / "emoji.json").rows
    }
    assert not any(cell.has_latent for row in rows.values() for cell in row.values())
    top, neurons, random = rows["TopK"], rows["raw neurons"], rows["TopK, random denoiser"]
    assert (top["label"].n_values, top["label"].n_values_with_latent, neurons["label"].n_values_with_latent) == (
        6,
        2,
        1,
    )
    controls = [row for name, row in rows.items() if name not in ("TopK", "BatchTopK", "Matryoshka", "JumpReLU")]
    assert top["label"].auroc.value > max(row["label"].auroc.value for row in controls) + 0.1
    assert abs(top["style"].auroc.value - rows["random directions"]["style"].auroc.value) < 0.01
    assert random["skin_tone"].auroc.value > top["skin_tone"].auroc.value
    trained = [rows[name] for name in ("TopK", "BatchTopK", "Matryoshka", "JumpReLU")]
    assert max(q for row in trained for cell in row.values() for q in cell.q) < 0.01


def test_the_picture_is_small() -> None:
    assert 10_000 < (ROOT / "docs/leaderboard.png").stat().st_size < 200_000


def test_its_commands_are_valid() -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    diffprobe (.+)$", PAGE, re.MULTILINE)]
    assert len(commands) == 5
    for verb, *rest in commands:
        args = make_parser(verb).parse_args(rest)
        if verb == "certify":
            load_settings("dictionary", settings_tree(args.keys))
