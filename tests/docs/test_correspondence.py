"""The tables of docs/users/correspondence.md are those of the recorded results."""

import importlib.util
from types import ModuleType

import pytest

from diffprobe.core.result import RunResult, read_result
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_correspondence", ROOT / "docs/record_correspondence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(script: ModuleType) -> dict[str, RunResult]:
    return {name: read_result(script.RESULTS / f"{name}.json") for name in script.ALL}


def test_the_tables_are_the_recorded_ones(script: ModuleType, results: dict[str, RunResult]) -> None:
    assert {name: script.name_of(result) for name, result in results.items()} == {name: name for name in script.ALL}
    page = script.PAGE.read_text("utf-8")
    for name, lines in script.TABLES.items():
        start, end = script.marks(name)
        assert page.partition(start)[2].partition(end)[0].strip() == "\n".join(lines(results)).strip(), name


def test_all_runs_match_the_same_points(script: ModuleType, results: dict[str, RunResult]) -> None:
    for name in (*script.RUNS, *script.BESIDE, "flip", "draws_8", "draw_0"):
        record = script.chosen(results[name])
        assert record.n == 150 * len(script.POINTS) and record.detail["n_clusters"] == 150
    whole, beside = (script.chosen(results[name]) for name in ("other_role", "beside"))
    assert (whole.value, whole.cell) == (beside.value, beside.cell)


def test_all_runs_read_one_cleandift_model_of_the_recorded_training(
    script: ModuleType, results: dict[str, RunResult]
) -> None:
    names = [*script.BESIDE, "flip", "draws_8", *(f"draw_{seed}" for seed in script.SEEDS)]
    assert len({results[name].artifacts["input/cleandift"] for name in names}) == 1
    page = script.PAGE.read_text("utf-8")
    for name in ("training", "emoji_training"):
        values = {record.name: record.value for record in results[name].metrics}
        assert values["loss"] < values["teacher_loss"]
        assert all(f"{value:.3f}" in page for value in values.values())
    assert results["training"].run.rpartition("/")[2] in results["beside"].config["cleandift"]
    # one noise draw or another changes the features of the teacher alone
    clean = {script.chosen(results[f"draw_{seed}"], script.STRICT, "cleandift").value for seed in script.SEEDS}
    noisy = {script.chosen(results[f"draw_{seed}"], script.STRICT).value for seed in script.SEEDS}
    assert len(clean) == 1 < len(noisy)
