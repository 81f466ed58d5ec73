"""Records of planted counts: the choice on val, the differences to controls, and the scores of the chosen one."""

import numpy as np
import pytest

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import SplitLeak
from diffprobe.evaluation.concepts_records import Candidate, Rung, best_candidate, concepts_records
from diffprobe.evaluation.concepts_settings import ConceptsEvaluation
from diffprobe.evaluation.score_settings import ScoredBackbone

A, B = (Candidate(cell=f"{name}@t20:prompt:none", threshold=0.5) for name in ("a", "b"))
GROUPS = {"val": [f"v{i}" for i in range(8)], "test": [f"t{i}" for i in range(8)]}
CONFIG = ConceptsEvaluation(
    backbone=ScoredBackbone(path="scenes-sd"), data=DataConfig(path="data/scenes"), timesteps=(20,),
    classes={"rest": (0,), "hat": (1,), "tool": (2,)}, words={"hat": ("hat",), "tool": ("tool",)}, thresholds=(0.5,),
)  # fmt: skip


def _counts(hit: float) -> np.ndarray:
    miss = 10 - hit
    return np.stack([np.array([[hit, miss, 0], [miss, hit + i, 0], [0, 0, 0]]) for i in range(8)])


def _rung(hit: float) -> Rung:
    precisions = np.tile([hit / 10, 0.5, np.nan], (8, 1))
    counts = {A: _counts(hit - 2), B: _counts(hit)}
    return Rung(val=counts, test=counts, chosen=B, precisions=precisions)


def test_the_candidate_of_val_is_scored_beside_the_controls() -> None:
    assert best_candidate(_rung(8).val) == B
    records = concepts_records(CONFIG, {"own": _rung(8), "raw_attention": _rung(5)}, GROUPS)
    val, test = ([one for one in records if one.split == split] for split in ("val", "test"))
    assert {one.cell for one in val} == {A.cell, B.cell}
    by_name = {one.name: one for one in test}
    pixels, pooled, precision = (by_name[name] for name in ("pixel_accuracy", "miou_pooled", "mean_average_precision"))
    assert pixels.value == pytest.approx((16 * 8 + 28) / (20 * 8 + 28)) and pixels.cell == B.cell
    assert pooled.value == pytest.approx(np.mean(list(pooled.detail["by_class"].values())))
    assert precision.value == pytest.approx(0.65) and precision.controls["raw_attention"] == pytest.approx(0.5)
    assert set(precision.detail["by_class"]) == {"rest", "hat"}
    for one in test:
        assert one.detail["differences"]["raw_attention"][0] == pytest.approx(one.value - one.controls["raw_attention"])
        assert one.detail["threshold"] == 0.5 and one.detail["interval"][0] <= one.value <= one.detail["interval"][1]


def test_a_group_in_both_splits_is_refused() -> None:
    with pytest.raises(SplitLeak, match="v0"):
        concepts_records(CONFIG, {"own": _rung(8)}, {"val": GROUPS["val"], "test": GROUPS["val"]})
