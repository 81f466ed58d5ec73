"""The tables of docs/users/segmentation.md are those of the recorded results, and these of the commands beside them."""

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import record_tree
from diffprobe.core.result import RunResult, read_result
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_segmentation", ROOT / "docs/record_segmentation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(script: ModuleType) -> dict[str, RunResult]:
    return {name: read_result(script.RESULTS / f"{name}.json") for name in script.NAMES}


def test_the_tables_are_the_recorded_ones(script: ModuleType, results: dict[str, RunResult]) -> None:
    assert {name: script.name_of(result) for name, result in results.items()} == {name: name for name in script.NAMES}
    page = script.PAGE.read_text("utf-8")
    for name, lines in script.tables(results).items():
        start, end = script.marks(name)
        assert page.partition(start)[2].partition(end)[0].strip() == "\n".join(lines), name
    assert "../segmentation-labels.png" in page and script.FIGURE.is_file()


@pytest.mark.parametrize(
    ("name", "experiment", "kind", "settings"),
    [
        ("linear", "scenes/segmentation", "evaluate_segmentation", []),
        (
            "convolutional", "scenes/segmentation", "evaluate_segmentation",
            ["head=convolutional", "controls=[vae_latents,random_weights]"],
        ),
        ("depth", "scenes/depth", "evaluate_depth", []),
    ],
)  # fmt: skip
def test_the_results_are_of_the_commands_of_the_page(
    name: str, experiment: str, kind: str, settings: list[str], results: dict[str, RunResult]
) -> None:
    config: Any = record_tree(load(experiment, settings, kinds=(kind,)))
    recorded = results[name].config
    for key in set(config) - {"output", "features", "data", "backbone"}:
        assert recorded[key] == config[key], key
    assert recorded["features"]["taps"] == config["features"]["taps"]


def test_values_are_means_over_draws_and_differences_are_to_the_controls(
    script: ModuleType, results: dict[str, RunResult]
) -> None:
    for result in results.values():
        for record in (one for one in result.metrics if one.split == "test"):
            assert (
                record.value == pytest.approx(np.mean(record.detail["by_draw"])) and len(record.detail["by_draw"]) == 3
            )
            for name, value in record.controls.items():
                assert value == pytest.approx(np.mean(record.detail["control_by_draw"][name]))
                assert record.detail["differences"][name][0] == pytest.approx(record.value - value)
    for head in ("linear", "convolutional"):
        for record in script.tests(results[head], script.MIOU):
            assert record.n == 200 and record.detail["n_clusters"] == 200
