"""The samples of a statistic: equal where keys, groups and labels are; the rest is in test_table_tests.py."""

import dataclasses

import numpy as np
import pytest

from diffprobe.analysis.statistics import SINGLE_SAMPLES
from diffprobe.runs.kept_statistics import Samples

SAMPLES = Samples(
    keys=("a", "b"), group="family", clusters=("f", "g"), labels=np.array([0, 1]), classes=("cat", "dog")
)  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"keys": ("a", "c")}, {"group": "base"}, {"labels": np.array([1, 1])}, {"classes": ("cat", "owl")}]
)
def test_samples_that_differ_are_not_equal(change):
    assert SAMPLES.equals(dataclasses.replace(SAMPLES)) and not SAMPLES.equals(dataclasses.replace(SAMPLES, **change))


def test_what_is_resampled_is_named():
    assert SAMPLES.unit == "values of 'family'"
    assert dataclasses.replace(SAMPLES, group=SINGLE_SAMPLES).unit == "single samples"
