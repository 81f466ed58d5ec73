"""The page of the leaderboard: its tables, facts and words are those of the records, and its commands are valid."""

import re
import shlex

import pytest

from diffprobe.benchmarks.leaderboard_ground import BOARDS
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
    most = {"colour", "build", "size", "pose", "background"}
    assert len(libraries) == 4
    for name in ("TopK", "BatchTopK", "JumpReLU", *libraries):
        assert found[name] - {"side"} == most and ("side" in found[name]) == (name in ("TopK", "BatchTopK")), name
    assert found["Matryoshka"] == most - {"colour"} and found["transcoder"] == most - {"size"}
    side = [cell.n_seeds for name in ("TopK", "BatchTopK") for cell in rows[name].factors if cell.factor == "side"]
    assert side == [2, 2]
    assert found["random directions"] == {"pose", "background"} and not found["TopK, random denoiser"]
    highest = max(rows["TopK, random denoiser"].factors, key=lambda cell: cell.auroc.value)
    assert highest.factor == "side" and f"that of side, {highest.auroc.value:.2f}" in PAGE
    assert max(row.absorption.value for row in rows.values()) < 0.01


def test_the_text_on_scenes_compares_seeds_steps_and_errors_as_the_record_does() -> None:
    rows = {row.name: row for row in read_leaderboard(RESULTS / "scenes.json").rows}
    libraries = [row for row in rows.values() if row.kind == "peer"]
    trained = [row for row in rows.values() if row.kind != "control"]
    top, batch_top = rows["TopK"], rows["BatchTopK"]
    others = [seed for row in trained if row is not top for seed in row.auroc.seeds]
    assert f"({min(top.auroc.seeds):.3f} to {max(top.auroc.seeds):.3f}) than any seed of another row" in PAGE
    assert min(top.auroc.seeds) > max(others) and f"(at most {max(others):.3f})" in PAGE
    errors = [seed for row in libraries if row.fvu for seed in row.fvu.seeds]
    assert top.fvu is not None and batch_top.fvu is not None and max(top.fvu.seeds) < min(errors)
    assert f"fvu ({min(top.fvu.seeds):.3f} to {max(top.fvu.seeds):.3f}) than any seed" in " ".join(PAGE.split())
    assert f"the other libraries ({min(errors):.3f} to {max(errors):.3f})" in " ".join(PAGE.split())
    assert min(row.fvu.value for row in trained if row.fvu) == batch_top.fvu.value
    spread = [max(row.steps) / min(row.steps) for row in trained]
    assert 1.25 < max(spread) < 1.305 and "by up to 30 %" in PAGE
    for name, said in {"SAELens": "the steps of SAELens", "sparsify": "those of sparsify"}.items():
        low, high = min(top.steps) / max(rows[name].steps), max(top.steps) / min(rows[name].steps)
        assert f"{low:.1f} to {high:.1f} times {said}" in " ".join(PAGE.split())
    assert max(batch_top.steps) < 0.6 * min(top.steps) and batch_top.auroc.value < top.auroc.value
    level = [row.auroc.value for row in libraries]
    assert min(level) - 0.001 < rows["JumpReLU"].auroc.value < max(level)
    assert rows["Matryoshka"].auroc.value < min(level)
    assert rows["TopK"].n_latents == 640 and "640 directions" in PAGE


def test_the_text_on_emoji_is_that_of_the_record() -> None:
    board = read_leaderboard(RESULTS / "emoji.json")
    rows = {row.name: {cell.factor: cell for cell in row.factors} for row in board.rows}
    assert not any(cell.has_latent for row in rows.values() for cell in row.values())
    trained = [row.name for row in board.rows if row.kind != "control"]
    of_subgroups = {name: rows[name]["label"].n_values_with_latent for name in (*trained, "raw neurons")}
    fewer = {"sparsify", "BatchTopK", "JumpReLU", "Matryoshka", "raw neurons"}
    assert of_subgroups == {name: 1 if name in fewer else 2 for name in of_subgroups}
    top, random = rows["TopK"], rows["TopK, random denoiser"]
    assert top["label"].n_values == 6
    controls = [rows[row.name] for row in board.rows if row.kind == "control"]
    assert top["label"].auroc.value > max(row["label"].auroc.value for row in controls) + 0.05
    assert 0 < rows["random directions"]["style"].auroc.value - top["style"].auroc.value < 0.02
    assert random["skin_tone"].auroc.value > top["skin_tone"].auroc.value
    best = max(trained, key=lambda name: rows[name]["style"].auroc.value)
    assert best == "transcoder" and f"for style, {rows[best]['style'].auroc.value:.2f}" in PAGE
    known = {
        (name, factor) for name in trained for factor, cell in rows[name].items() if max(cell.q) >= 0.01
    }  # fmt: skip
    assert known == {("JumpReLU", "skin_tone")}


def test_the_text_on_emoji_compares_intervals_and_errors_as_the_record_does() -> None:
    rows = {row.name: row for row in read_leaderboard(RESULTS / "emoji.json").rows}
    compared = [row for name, row in rows.items() if row.kind != "control" and name != "Matryoshka"]
    shared = max(row.auroc.low for row in compared), min(row.auroc.high for row in compared)
    assert shared[0] < shared[1] and f"overlap in {shared[0]:.3f} to {shared[1]:.3f}" in PAGE
    assert rows["Matryoshka"].auroc.high < shared[1]
    top, transcoder = rows["TopK"], rows["transcoder"]
    assert top.fvu is not None and transcoder.fvu is not None
    others = [row.fvu for row in rows.values() if row.fvu and row.kind != "control" and row is not top]
    assert max(top.fvu.seeds) < min(min(fvu.seeds) for fvu in others)
    assert f"leaves {transcoder.fvu.value:.2f} of the variance" in PAGE
    steps = rows["sparsify"].steps
    assert f"{min(top.steps) / max(steps):.1f} to {max(top.steps) / min(steps):.1f} times the steps of sparsify" in PAGE


def test_the_picture_is_small() -> None:
    assert 10_000 < (ROOT / "docs/leaderboard.png").stat().st_size < 200_000


def test_its_commands_are_valid() -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    diffprobe (.+)$", PAGE, re.MULTILINE)]
    assert len(commands) == 5
    for verb, *rest in commands:
        args = make_parser(verb).parse_args(rest)
        if verb == "certify":
            load_settings("dictionary", settings_tree(args.keys))
