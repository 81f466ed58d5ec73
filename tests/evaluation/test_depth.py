"""`eval depth` on rendered scenes and a tiny pipeline, and its counts against values by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from diffprobe.analysis.statistics import evaluate
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import read_result
from diffprobe.evaluation.depth import DepthTask, evaluate_depth
from diffprobe.evaluation.depth_settings import DepthEvaluation
from diffprobe.shards.datasets import scenes


@pytest.fixture(scope="module")
def config(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> DepthEvaluation:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.build(out=folder, n=120, seed=4)
    return parse(
        DepthEvaluation,
        {
            "experiment": "tiny/depth",
            "backbone": {"path": str(tiny_sd), "device": "cpu"},
            "data": {"path": str(folder), "batch_size": 4},
            "features": {"taps": ["up_blocks.0", "up_blocks.1"], "timesteps": [20], "pool": "none"},
            "labels": [2, 6], "label_draws": 2, "pool": 12, "n_val": 5, "n_test": 6, "levels": True,
            "output": str(tmp_path_factory.mktemp("runs")),
        },
    )  # fmt: skip


@pytest.mark.slow
def test_the_cell_of_the_smallest_error_is_scored_beside_the_controls(config: DepthEvaluation) -> None:
    result = read_result(evaluate_depth(config))
    assert result.kind == "depth" and result.seeds["labels"] == config.seed
    val = [one for one in result.metrics if one.split == "val"]
    for n in (2, 6):
        own = {one.cell: one.value for one in val if one.detail["labels"] == n}
        rmse, order = [one for one in result.metrics if one.split == "test" and one.detail["labels"] == n]
        assert (rmse.name, order.name) == (f"rmse_labels{n}", f"order_labels{n}")
        assert rmse.cell == min(own, key=lambda cell: own[cell]) and len(own) == 2
        assert set(rmse.controls) == set(config.controls) and rmse.detail["l2"] in config.l2
        assert rmse.value == pytest.approx(np.mean(rmse.detail["by_draw"])) and 0 < order.value < 1
        for name, value in rmse.controls.items():
            assert rmse.detail["differences"][name][0] == pytest.approx(rmse.value - value)


def test_counts_and_scores_are_those_of_the_known_pixels(config: DepthEvaluation) -> None:
    truth = torch.tensor([[0.0, 2.0, 4.0], [0.0, 4.0, 2.0]])
    found = torch.tensor([[9.0, 3.0, 4.0], [9.0, 2.0, 2.0]])
    task = DepthTask(config)
    counts = task.count(found, truth)[None]
    rmse, order = (evaluate(score.statistic(counts), np.arange(1)) for score in task.scores)
    assert rmse == pytest.approx(((1 + 0 + 4 + 0) / 4) ** 0.5)
    assert order == pytest.approx((1 + 1 + 0 + 0.5) / 4)  # pairs (2, 4): 3 < 4, 2 < 4, 3 > 2, 2 = 2
    both = DepthTask(dataclasses.replace(config, order_gap=3))
    far = torch.tensor([[0.0, 1.0, 4.0], [0.0, 2.0, 4.0]])  # of the pairs (1, 4), (2, 4), (1, 2) only the first count
    scores = {one.name: one.statistic(both.count(found, far)[None]) for one in both.scores}
    assert evaluate(scores["order_gap3"], np.arange(1)) == 0.5  # 3 < 4, 3 > 2
    assert evaluate(scores["order"], np.arange(1)) == pytest.approx((1 + 0 + 1 + 0.5 + 0) / 5)
    metric = DepthTask(dataclasses.replace(config, levels=False))
    names = {
        score.name: evaluate(score.statistic(metric.count(found, truth)[None]), np.arange(1)) for score in metric.scores
    }
    assert names["abs_rel"] == pytest.approx((0.5 + 0 + 0.5 + 0) / 4) and names["delta1"] == 0.5


def test_the_mean_at_a_position_leaves_unknown_pixels_out(config: DepthEvaluation) -> None:
    truth = [torch.tensor([[2.0, 0.0], [0.0, 6.0]]), torch.tensor([[4.0, 0.0], [8.0, 0.0]])]
    predicted = DepthTask(config).by_place(truth, (2, 2))(torch.zeros(1, 2, 2), (2, 2))
    assert predicted.tolist() == [[3.0, 5.0], [8.0, 6.0]]  # nowhere known: the mean of 2, 6, 4 and 8


def test_depth_of_many_levels_has_no_order(config: DepthEvaluation) -> None:
    truth = torch.arange(1.0, 101.0).reshape(10, 10)
    with pytest.raises(ConfigError, match="100"):
        DepthTask(config).count(truth, truth)
