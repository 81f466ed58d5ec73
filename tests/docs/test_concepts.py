"""The tables of docs/users/concept-maps.md are those of the recorded result."""

import importlib.util
from types import ModuleType

import pytest
from PIL import Image

from diffprobe.config.compose import load
from diffprobe.core.result import RunResult, read_result
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_concepts", ROOT / "docs/record_concepts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(script: ModuleType) -> RunResult:
    return read_result(script.RESULT)


def test_the_tables_are_the_recorded_ones(script: ModuleType, result: RunResult) -> None:
    page = script.PAGE.read_text("utf-8")
    for name, lines in script.TABLES.items():
        start, end = script.marks(name)
        assert page.partition(start)[2].partition(end)[0].strip() == "\n".join(lines(result)).strip(), name


def test_the_run_is_that_of_the_shipped_experiment(script: ModuleType, result: RunResult) -> None:
    config = load(script.EXPERIMENT, [], kinds=("evaluate_concepts",))
    record = script.scores(result)["miou_pooled"]
    assert record.n == config.n_test and set(record.controls) == set(script.CONTROLS) == set(config.controls)
    assert {name: tuple(words) for name, words in result.config["words"].items()} == config.words
    cells = [one for one in result.metrics if one.split == "val"]
    best = max(cells, key=lambda one: one.value)
    assert (record.cell, record.detail["threshold"]) == (best.cell, best.detail["threshold"])
    assert len(cells) % (len(config.timesteps) * len(config.thresholds)) == 0


def test_the_picture_is_there(script: ModuleType) -> None:
    with Image.open(script.PICTURE) as picture:
        assert picture.width > picture.height > 500 and script.PICTURE.name in script.PAGE.read_text("utf-8")
