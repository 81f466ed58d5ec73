"""The engine of dense evaluations: what must not change its numbers, and what does."""

import dataclasses
from pathlib import Path

import pytest

from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.core.result import RunResult, read_result
from diffprobe.evaluation.dense_readouts import evaluate_dense
from diffprobe.evaluation.depth import DepthTask
from diffprobe.evaluation.depth_settings import DepthEvaluation
from diffprobe.shards.datasets import scenes


@pytest.fixture(scope="module")
def config(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> DepthEvaluation:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.build(out=folder, n=120, seed=4)
    return parse(
        DepthEvaluation,
        {
            "backbone": {"path": str(tiny_sd), "device": "cpu"},
            "data": {"path": str(folder), "batch_size": 4},
            "features": {"taps": ["up_blocks.0"], "timesteps": [20], "pool": "none"},
            "labels": [4, 6], "label_draws": 2, "pool": 12, "n_val": 5, "n_test": 6, "l2": [0.01, 1.0],
            "controls": ["pixels", "shuffled_truth"], "output": str(tmp_path_factory.mktemp("runs")),
        },
    )  # fmt: skip


def run(config: DepthEvaluation) -> RunResult:
    return read_result(evaluate_dense(config, DepthTask(config)))


def values(result: RunResult, n: int = 4) -> dict[str, float]:
    (record,) = [one for one in result.metrics if (one.split, one.name) == ("test", f"rmse_labels{n}")]
    draws = {f"draw {i}": value for i, value in enumerate(record.detail["by_draw"])}
    return {"own": record.value, **record.controls, **draws}


@pytest.mark.slow
def test_batches_and_other_numbers_of_labels_change_nothing(config: DepthEvaluation) -> None:
    whole = values(run(config))
    data = dataclasses.replace(config.data, batch_size=3)
    assert values(run(dataclasses.replace(config, data=data))) == pytest.approx(whole, rel=1e-4)
    assert values(run(dataclasses.replace(config, labels=(2, 4)))) == pytest.approx(whole, rel=1e-4)
    assert whole["draw 0"] != pytest.approx(whole["draw 1"], rel=1e-3)
    other = values(run(dataclasses.replace(config, seed=1)))
    assert other["own"] != pytest.approx(whole["own"], rel=1e-3)


@pytest.mark.slow
def test_the_penalty_is_chosen_among_the_candidates(config: DepthEvaluation) -> None:
    alone = {
        l2: next(one for one in run(dataclasses.replace(config, l2=(l2,))).metrics if one.split == "val").value
        for l2 in config.l2
    }
    both = next(one for one in run(config).metrics if one.split == "val")
    assert both.value == pytest.approx(min(alone.values())) and alone[both.detail["l2"]] == pytest.approx(both.value)


def test_too_few_images_groups_in_two_splits_and_a_group_that_is_too_large_are_refused(
    config: DepthEvaluation,
) -> None:
    with pytest.raises(ConfigError, match="are needed"):
        run(dataclasses.replace(config, labels=(1000,), pool=1000, label_draws=1))
    data = dataclasses.replace(config.data, val_split="test")
    with pytest.raises(SplitLeak, match="val split and in the test split"):
        run(dataclasses.replace(config, data=data))
