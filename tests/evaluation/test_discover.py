"""`diffprobe discover` on stores with planted attributes: result, table and page."""

import csv

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import read_result
from diffprobe.evaluation.discover import KIND, discover
from diffprobe.evaluation.discover_settings import DiscoverConfig
from tests.evaluation.discover_stores import CELL, image_store, prompt_store

QUICK = {"cell": CELL, "n_permutations": 399, "n_resamples": 50, "n_examples": 3, "max_components": 6}


def test_prompts_whose_hidden_attribute_differs_by_subject(tmp_path):
    store = prompt_store(tmp_path)
    written = discover(store, DiscoverConfig(subject="role", **QUICK), output=tmp_path / "runs")
    result = read_result(written.result)
    summary, *records = result.metrics
    assert result.kind == KIND and result.config["cell"] == CELL and "images" not in result.config
    assert summary.detail["is_paired"] and summary.detail["hidden"] == 1 and not summary.detail["has_words"]
    first = records[0].detail
    assert first["kind"] == "association" and first["is_hidden"]
    ends = {"high": first["high_subjects"], "low": first["low_subjects"]}
    rates = {row["subject"]: row["rate"] for row in first["rates"]}
    assert {"role0", "role1"} in (set(ends["high"]), set(ends["low"])) and len(rates) == 6
    assert all(len(keys) == 3 for keys in first["examples"].values())
    with written.csv.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) and rows[0]["hidden"] == "yes"
    page = written.page.read_text(encoding="utf-8")
    assert "<script" not in page and page.count("data:image/png;base64,") >= 6 and "hidden association" in page


@pytest.mark.slow
def test_images_whose_captions_name_the_other_attribute(tmp_path):
    written = discover(image_store(tmp_path), DiscoverConfig(**QUICK), output=tmp_path / "runs")
    summary, *records = read_result(written.result).metrics
    assert not summary.detail["is_paired"] and summary.detail["subject_by"] == "label"
    assert any("1 samples without" in note for note in summary.detail["notes"])
    named = [record for record in records if record.detail["named_by"]]
    assert {word["phrase"] for record in named for word in record.detail["named_by"]} == {
        "striped clothes", "plain clothes",
    }  # fmt: skip
    assert [record.detail["kind"] for record in named] == ["free"]


@pytest.mark.slow
def test_the_same_settings_give_the_same_files(tmp_path):
    store = prompt_store(tmp_path, images=False)
    first = discover(store, DiscoverConfig(subject="role", **QUICK), output=tmp_path / "one")
    again = discover(store.path, DiscoverConfig(subject="role", **QUICK), output=tmp_path / "two")
    assert first.csv.read_bytes() == again.csv.read_bytes() and first.result.parent.name == again.result.parent.name


def test_a_reader_needs_images(tmp_path):
    store = prompt_store(tmp_path, images=False)
    with pytest.raises(ConfigError, match="images"):
        discover(store, DiscoverConfig(subject="role", reader="scenes-reader", **QUICK), output=tmp_path)
