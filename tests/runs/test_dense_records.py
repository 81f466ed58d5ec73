"""Records of dense heads: values by hand, the sign of differences, and what a group is."""

import numpy as np
import pytest

from diffprobe.generative.run_settings import DenseCounts
from diffprobe.runs.dense_records import dense_records


def counts(task: str, own: np.ndarray, control: np.ndarray, classes: tuple[str, ...]) -> DenseCounts:
    groups = [str(i // 2) for i in range(len(own))]
    return DenseCounts(
        task=task, probe="vpd", groups=groups, classes=classes, own=own, controls={"frozen": control}
    )  # fmt: skip


def test_segmentation_has_the_iou_of_each_class_and_paired_differences() -> None:
    own = np.tile(np.array([[8.0, 0.0], [0.0, 2.0]]), (6, 1, 1))
    control = np.tile(np.array([[6.0, 2.0], [0.0, 2.0]]), (6, 1, 1))
    pooled, per_image = dense_records(counts("segmentation", own, control, ("ground", "hat")), split="test", seed=0)
    assert (pooled.name, per_image.name) == ("miou_pooled", "miou_per_image")
    assert pooled.value == 1 and pooled.detail["iou"] == {"ground": 1.0, "hat": 1.0}
    assert pooled.controls["frozen"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert pooled.detail["control_iou"]["frozen"] == {"ground": 0.75, "hat": 0.5}
    difference, low, high = pooled.detail["differences"]["frozen"]
    assert difference == pytest.approx(1 - 0.625) and low <= difference <= high
    assert pooled.detail["n_groups"] == 3 and pooled.n == 6 and pooled.probe == "vpd" and pooled.split == "test"


def test_referring_scores_the_referred_pixels_alone() -> None:
    own = np.stack([np.array([[90.0, 5.0], [0.0, 5.0]]), np.array([[50.0, 0.0], [0.0, 50.0]])] * 2)
    oiou, per_image = dense_records(counts("referring", own, own, ("other", "referred")), split="test", seed=0)
    assert oiou.name == "oiou" and oiou.value == pytest.approx(55 / 60)
    assert per_image.value == pytest.approx((0.5 + 1) / 2)
    assert oiou.detail["differences"]["frozen"] == [0.0, 0.0, 0.0]


def test_depth_has_errors_over_the_pixels_of_all_images() -> None:
    own = np.tile(np.array([10.0, 5.0, 2.0, 40.0]), (4, 1))
    records = {record.name: record for record in dense_records(counts("depth", own, own * 1, ()), split="test", seed=0)}
    assert records["rmse"].value == pytest.approx(2.0)
    assert records["delta1"].value == pytest.approx(0.5) and records["abs_rel"].value == pytest.approx(0.2)
