"""The choice of cell and penalty, and the records, from planted counts."""

from typing import Any

import numpy as np
import pytest

from diffprobe.config.compose import load
from diffprobe.evaluation.dense_scores import Counts, Score, best_candidate, dense_score_records, metric_name
from diffprobe.evaluation.segmentation import ClassTask, per_image_miou, pooled_miou

GOOD, FAIR, BAD = (np.tile(np.array([[hit, 10 - hit], [10 - hit, hit]], float), (6, 1, 1)) for hit in (9, 7, 5))
MIOU = Score(name="miou_pooled", statistic=pooled_miou)


def test_cell_and_penalty_are_chosen_by_the_mean_over_draws() -> None:
    counts: Counts = {
        "val": {
            ("a", 0.1, 4, 0): GOOD, ("a", 0.1, 4, 1): BAD,
            ("b", 0.1, 4, 0): FAIR, ("b", 0.1, 4, 1): FAIR,
            ("b", 1.0, 4, 0): FAIR, ("b", 1.0, 4, 1): GOOD,
            ("a", 0.1, 16, 0): GOOD, ("a", 0.1, 16, 1): GOOD, ("b", 0.1, 16, 0): BAD, ("b", 0.1, 16, 1): BAD,
        }
    }  # fmt: skip
    assert best_candidate(counts, 4, MIOU) == ("b", 1.0)
    assert best_candidate(counts, 16, MIOU) == ("a", 0.1)
    worse = Score(name="error", statistic=pooled_miou, higher_is_better=False)
    assert best_candidate(counts, 16, worse) == ("b", 0.1)
    assert metric_name("miou_per_image", 4) == "miou_per_image_labels4"


def test_records_hold_the_mean_the_draws_and_the_differences() -> None:
    config: Any = load(
        "scenes/segmentation",
        ["labels=[4]", "label_draws=2", "l2=[0.1,1]", "controls=[pixels]", "classes=null", "classes={a: [0], b: [1]}"],
        kinds=("evaluate_segmentation",),
    )
    own: Counts = {
        split: {
            ("x", l2, 4, draw): (GOOD if l2 == 1 else BAD) if draw else FAIR for l2 in (0.1, 1.0) for draw in (0, 1)
        }
        for split in ("val", "test")
    }
    control: Counts = {split: {("", 0.1, 4, draw): BAD for draw in (0, 1)} for split in ("val", "test")}
    groups = {split: [str(i) for i in range(6)] for split in ("val", "test")}
    val, pooled, per_image = dense_score_records(config, ClassTask(config), {"own": own, "pixels": control}, groups)
    fair, good, bad = 7 / 13, 9 / 11, 5 / 15
    assert val.detail["l2"] == 1.0 and val.value == pytest.approx((fair + good) / 2)
    assert pooled.detail["by_draw"] == pytest.approx([fair, good])
    assert pooled.detail["sd_over_draws"] == pytest.approx((good - fair) / 2**0.5)
    assert pooled.controls == {"pixels": pytest.approx(bad)}
    assert pooled.detail["differences"]["pixels"][0] == pytest.approx((fair + good) / 2 - bad)
    assert pooled.detail["iou_pooled"] == pytest.approx({"a": (fair + good) / 2, "b": (fair + good) / 2})
    assert pooled.detail["l2_at_end"] and pooled.detail["control_l2"] == {"pixels": 0.1}
    assert per_image.name == "miou_per_image_labels4" and "iou_pooled" not in per_image.detail


def test_an_image_without_known_pixels_counts_for_nothing() -> None:
    from diffprobe.analysis.statistics import evaluate

    counts = np.concatenate([GOOD, np.zeros((1, 2, 2))])
    for statistic in (pooled_miou, per_image_miou):
        assert evaluate(statistic(counts), np.arange(7)) == pytest.approx(9 / 11)
