"""Further tables of scores are those of the recorded results."""

import importlib.util
from typing import Any

import pytest

from tests.docs.markdown import ROOT

_SPEC = importlib.util.spec_from_file_location("record_score_tables", ROOT / "docs/record_score_tables.py")
assert _SPEC is not None and _SPEC.loader is not None
tables: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_a_table_is_on_its_page_if_and_only_if_results_are_recorded(name: str) -> None:
    page, make = tables.TABLES[name]
    marker, results = f"<!-- table: {name} -->\n", tables.recorded(name)
    text = page.read_text("utf-8")
    assert (marker in text) == bool(results)
    if results:
        assert text.partition(marker)[2].partition("\n\n")[0].splitlines() == make(results)
        for result in results.values():
            assert f"experiment={result.experiment}" in text


def test_weights_are_compared_on_the_choices_of_the_main_table() -> None:
    """The control of uniform weights is the value of the recorded run with uniform weights."""
    main = tables.recorded(".")
    assert {"emoji10", "scenes"} <= main.keys()
    for result in tables.recorded("weights").values():
        plain = main["emoji10" if result.experiment.startswith("emoji") else "scenes"]
        uniform = {record.name: record.value for record in plain.metrics}
        for record in result.metrics:
            assert record.controls["uniform_weights"] == pytest.approx(uniform[record.name])
            assert result.config["weights"]["kind"] != "uniform"


def test_the_text_on_weights_is_that_of_the_results() -> None:
    results = tables.recorded("weights")
    found = {
        name: {record.name: record.detail["differences"]["uniform_weights"] for record in one.metrics}
        for name, one in results.items()
    }
    assert len(found) == 4 and all(one["low"] <= 0 for of_run in found.values() for one in of_run.values())
    place = found["scenes_learned"]["matched_caption_accuracy_place"]
    value, most, least = (f"{-100 * place[key]:.1f}" for key in ("estimate", "low", "high"))
    assert f"lose {value} points ({least} to {most})" in tables.SCORES.read_text("utf-8")


def test_the_text_on_the_alignment_head_is_that_of_the_results() -> None:
    (result,) = tables.recorded("diffdis").values()
    found = {record.name: record for record in result.metrics if record.split == "test"}
    plain = [name for name in found if not name.endswith("_ddim")]
    words = {name: found[name].detail["differences"]["bag_of_words"] for name in plain}
    assert {name for name, one in words.items() if one["low"] > 0} == {"caption_recall_10", "image_recall_1"}
    assert all(one["high"] > 0 for one in words.values())
    assert all(found[name].detail["differences"]["shuffled_captions"]["low"] > 0.01 for name in plain)
    above = [name for name in plain if found[name].detail["interval"][0] > found[f"{name}_ddim"].detail["interval"][1]]
    assert len(plain) == 4 and len(above) == 3


def test_the_model_is_above_the_text_free_one_for_every_factor() -> None:
    (result,) = tables.recorded("text_free").values()
    choices = [record for record in result.metrics if record.name.startswith("matched_caption_accuracy")]
    assert len(choices) == 7
    for record in choices:
        assert record.detail["differences"]["text_free_model"]["low"] > 0
        distance = abs(record.controls["text_free_model"] - record.controls["chance"])
        assert distance <= 3 * (record.controls["chance"] * (1 - record.controls["chance"]) / record.n) ** 0.5
    text = tables.SCORES.read_text("utf-8")
    assert "above it for every factor, and it is itself within three standard errors of chance" in text
