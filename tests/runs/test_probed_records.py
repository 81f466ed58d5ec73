"""Intervals of probing accuracy: paired, over groups, and absent for a single group."""

import numpy as np
import pytest

from diffprobe.core.result import MetricRecord
from diffprobe.generative.run_settings import ProbedImages
from diffprobe.runs.probed_records import with_intervals

CELL = "mid_block@t100:empty:mean"


def probed(groups: list[str]) -> ProbedImages:
    """Step 0 is right for every second image, the last one for these and a quarter of the others."""
    first = np.arange(len(groups)) % 2 == 0
    right = np.stack([first, first | (np.arange(len(groups)) % 8 == 1)])
    return ProbedImages(
        groups=groups, steps=[0, 5], right={(CELL, "role"): right}, raw_pixels={"role": np.ones(len(groups), bool)}
    )


def detail_of(groups: list[str]) -> dict[str, object]:
    record = MetricRecord(
        name="accuracy", value=0.625, split="val", n=len(groups), cell=CELL, target="role", detail={"steps": [0, 5]}
    )
    (found,) = with_intervals([record], probed(groups), seed=0)
    assert found.value == 0.625 and found.detail["steps"] == [0, 5]
    return found.detail


def test_differences_are_paired_by_image() -> None:
    detail = detail_of([str(i) for i in range(400)])
    start, last = detail["rise"]
    assert start == [0, 0]  # a step against itself has no spread
    error = (0.125 * 0.875 / 400) ** 0.5  # of a difference that is 1 for one image in eight
    assert last == pytest.approx([0.125 - 1.96 * error, 0.125 + 1.96 * error], abs=0.2 * error)
    low, high = detail["differences"]["raw_pixels"]
    assert low < -0.375 < high < 0
    assert detail["n_groups"] == 400


def test_groups_are_resampled_whole() -> None:
    single, grouped = (detail_of([str(i // size) for i in range(400)]) for size in (1, 8))
    assert grouped["n_groups"] == 50
    low, high = grouped["rise"][1]  # each group of eight has the same share
    assert low == pytest.approx(high) and single["rise"][1][0] < low


def test_one_group_has_no_interval() -> None:
    assert detail_of(["a"] * 8).keys() == {"steps"}
