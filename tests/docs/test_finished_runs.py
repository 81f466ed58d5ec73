"""Scripts of the documentation train and measure only what is not finished."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import record_tree
from diffprobe.core.result import RESULT_FILE, StartTime, make_result, write_result
from diffprobe.runs.train_generative import run_dir_of
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("finished_runs", ROOT / "docs/finished_runs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(config: Any, folder: Path, inputs: dict[str, str] | None = None) -> Path:
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    result = make_result(
        run="r", experiment=config.experiment, kind="k", config=tree, seeds={}, metrics=[], started_at=StartTime.now(),
        artifacts=inputs or {},
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_result(result, folder / RESULT_FILE)
    return folder / RESULT_FILE


def test_an_evaluation_is_measured_once_for_each_configuration(script: Any, tmp_path: Path) -> None:
    config: Any = load("scenes/clusters", ["run=some/run", f"output={tmp_path}"])
    measured: list[int] = []

    def measure(number: int) -> Callable[[Any], Path]:
        def evaluate(config: Any) -> Path:
            measured.append(number)
            return finish(config, tmp_path / config.experiment / str(number))

        return evaluate

    first = script.evaluated(config, measure(1))
    assert script.evaluated(config, measure(2)) == first and measured == [1]
    assert script.evaluated(replace(config, run="other/run"), measure(3)) != first and measured == [1, 3]
    assert script.evaluated(config, measure(4)) == first and measured == [1, 3]


def test_a_run_is_trained_once(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = load("scenes/train_reader", [f"output={tmp_path}"])
    trained: list[Path] = []

    def train(config: Any) -> Path:
        trained.append(run_dir_of(config))
        return finish(config, trained[-1], {"input:clusters": "a"})

    monkeypatch.setattr("diffprobe.runs.train_generative.train_generative", train)
    monkeypatch.setattr("diffprobe.runs.train_generative.inputs_of", lambda _config: {"input:clusters": "a"})
    assert script.trained(config) == script.trained(config) == run_dir_of(config) and len(trained) == 1
    monkeypatch.setattr("diffprobe.runs.train_generative.inputs_of", lambda _config: {"input:clusters": "b"})
    assert script.trained(config) == run_dir_of(config) and len(trained) == 2  # the inputs have changed since
