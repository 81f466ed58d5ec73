"""The card of the shipped flow model has the recorded numbers, and its statements are theirs."""

import json

import numpy as np
import pytest

from tests.docs.test_numbers import ROOT, script

SCRIPT = script("record_scenes_flow")
TREE = json.loads(SCRIPT.RESULT.read_text("utf-8"))
CARD = SCRIPT.CARD.read_text("utf-8")
TEXT = " ".join(CARD.split())


@pytest.mark.parametrize("name", ["images", "score"])
def test_the_card_has_the_recorded_numbers(name: str) -> None:
    block = CARD.partition(f"<!-- table: {name} -->\n")[2].partition("\n\n")[0]
    assert block.splitlines() == SCRIPT.tables(TREE)[name]
    assert f"{TREE['steps']} Euler steps with guidance {TREE['guidance']:g}" in CARD


def test_the_statements_are_those_of_the_recorded_numbers() -> None:
    found = {one["factor"]: one for one in TREE["images"]}
    assert list(found) == list(SCRIPT.FACTORS)
    assert all(one["rendered"] == 1 for one in found.values()) and "sees every factor of rendered scenes" in TEXT
    for name in ("size", "place", "side"):
        assert found[name]["value"] > 0.99
    assert found["object"]["value"] > 0.9
    low, high = found["texture"]["interval"]
    assert low < found["texture"]["shuffled"] < high
    assert all(one["shuffled"] < one["interval"][0] for name, one in found.items() if name != "texture")
    role, colour = (f"{100 * found[name]['value']:.0f} %" for name in ("role", "colour"))
    assert f"the role in {role} and the colour in {colour}" in TEXT


def test_the_statement_on_captions_is_that_of_the_recorded_run() -> None:
    below = {
        (one["metric"].rpartition("_")[2], name)
        for one in TREE["score"]
        if one["metric"].startswith("matched_")
        for name in ("chance", "regression_on_words", "regression_on_text_encoder")
        if one["interval"][0] <= one["controls"][name]
    }
    assert {factor for factor, _ in below} == {"texture", "place"}
    assert [name for factor, name in below if factor == "place"] == ["regression_on_words"]


def test_the_statement_on_directions_is_that_of_the_recorded_table() -> None:
    rows = (ROOT / "docs/results/scenes-flow/directions.txt").read_text("utf-8").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    agree = {row[0].partition(":")[0]: row[2] for row in cells if row[1] == "re-read"}
    assert all(agree[name] == "20 of 20" for name in ("colour", "size", "place"))
    page = " ".join((ROOT / "docs/users/directions.md").read_text("utf-8").split())
    assert agree["texture"].startswith("0 of") and "agrees in none" in page
    assert f"agree in all cells and the sides in {agree['side']}." in page


def test_shares_are_counted_by_hand() -> None:
    stated = [{"role": "cook", "size": "small"}, {"role": "poet"}, {"role": "cook"}]
    seen = {name: ["none"] * 3 for name in SCRIPT.FACTORS} | {"role": ["cook", "cook", "cook"]}
    for one in stated:  # every factor has to be stated somewhere
        one.update({name: one.get(name, "none") for name in SCRIPT.FACTORS})
    role = next(one for one in SCRIPT.accuracies(stated, seen, seen) if one["factor"] == "role")
    assert role["n"] == 3 and role["value"] == role["rendered"] == pytest.approx(2 / 3)
    size = next(one for one in SCRIPT.accuracies(stated, seen, seen) if one["factor"] == "size")
    assert size["value"] == pytest.approx(2 / 3)


def test_the_sheet_has_rows_of_eight_enlarged_images() -> None:
    image = SCRIPT.sheet(np.zeros((9, 4, 4, 3), dtype=np.uint8), gap=2)
    assert image.size == (8 * 14 + 2, 2 * 14 + 2)
