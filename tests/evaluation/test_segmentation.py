"""`eval segmentation` on rendered scenes and a tiny pipeline: records, controls, nested labelled sets, bad masks."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from diffprobe.config.massive import MassiveConfig
from diffprobe.config.parse import parse
from diffprobe.core.errors import SampleError
from diffprobe.core.result import read_result
from diffprobe.evaluation.segmentation import evaluate_segmentation
from diffprobe.evaluation.segmentation_settings import SegmentationEvaluation
from diffprobe.features.request import Request
from diffprobe.runs.massive_notes import DETAIL
from diffprobe.shards.datasets import scenes
from diffprobe.shards.scenes.spec import MASKS

CELLS = ["up_blocks.0@t20:empty:none", "up_blocks.1@t20:empty:none"]


@pytest.fixture(scope="module")
def config(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentationEvaluation:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.build(out=folder, n=120, seed=4)
    return parse(
        SegmentationEvaluation,
        {
            "experiment": "tiny/segmentation",
            "backbone": {"path": str(tiny_sd), "device": "cpu"},
            "data": {"path": str(folder), "batch_size": 4},
            "features": {"taps": ["up_blocks.0", "up_blocks.1"], "timesteps": [20], "pool": "none"},
            "classes": {name: list(values) for name, values in MASKS.items()},
            "labels": [2, 6], "pool": 12, "n_val": 5, "n_test": 6, "steps": 8,
            "output": str(tmp_path_factory.mktemp("runs")),
        },
    )  # fmt: skip


@pytest.mark.slow
def test_the_cell_of_val_is_scored_on_test_beside_the_controls(config: SegmentationEvaluation) -> None:
    result = read_result(evaluate_segmentation(config))
    val = [one for one in result.metrics if one.split == "val"]
    assert {(one.cell, one.detail["labels"]) for one in val} == {(cell, n) for cell in CELLS for n in (2, 6)}
    for n in (2, 6):
        own = {one.cell: one.value for one in val if one.detail["labels"] == n}
        pooled, per_image = [one for one in result.metrics if one.split == "test" and one.detail["labels"] == n]
        assert (pooled.name, per_image.name) == (f"miou_pooled_labels{n}", f"miou_per_image_labels{n}")
        assert not any(DETAIL in one.detail for one in result.metrics)
        assert pooled.cell == max(own, key=lambda cell: own[cell]) and pooled.n == 6
        assert set(pooled.controls) == set(config.controls)
        assert pooled.value == pytest.approx(np.mean(list(pooled.detail["iou_pooled"].values())))
        for name, value in pooled.controls.items():
            assert pooled.detail["differences"][name][0] == pytest.approx(pooled.value - value)
            assert 0 < value < 1


@pytest.mark.slow
def test_treated_channels_are_listed(config: SegmentationEvaluation, tmp_path: Path) -> None:
    massive = MassiveConfig(treatment="clip", ratio=1.5, images=20)
    features = dataclasses.replace(config.features, massive=massive)
    asked = dataclasses.replace(
        config, features=features, controls=("random_weights", "shuffled_truth"), labels=(6,), label_draws=1,
        output=str(tmp_path),
    )  # fmt: skip
    assert "to find massive channels, in each network: 20 more at least" in asked.cost_lines
    result = read_result(evaluate_segmentation(asked))
    request = Request(asked.backbone, asked.data, asked.features)
    request.load_extractor(images=True)
    assert request.massive is not None
    own = {cell: one.to_json() for cell, one in request.massive[0].items()}
    assert any(one["channels"] for one in own.values())
    for one in result.metrics:
        assert one.cell is not None and one.detail[DETAIL] == {one.cell: own[one.cell]}
    for one in (one for one in result.metrics if one.split == "test"):
        (cell,) = one.detail[f"control_{DETAIL}"]["random_weights"]
        assert cell == one.detail["control_cells"]["random_weights"]
        assert one.detail[f"control_{DETAIL}"]["random_weights"][cell] != own[cell]


def test_a_value_of_no_class_is_refused(config: SegmentationEvaluation) -> None:
    with pytest.raises(SampleError, match="in no class"):
        evaluate_segmentation(dataclasses.replace(config, classes={"background": (0,), "figure": (2, 3, 4, 5, 6, 7)}))
