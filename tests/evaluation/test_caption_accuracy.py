"""Accuracies with paired differences: pairing narrows an interval, families widen it."""

import numpy as np
import pytest

from diffprobe.evaluation.caption_accuracy import accuracy_record


def record(right, controls, families, attributes=None, by=()):
    return accuracy_record(
        "accuracy", right, controls, split="test", families=families, attributes=attributes or [{}] * len(right),
        by=by, seed=0, detail={"timesteps": [5]},
    )  # fmt: skip


def test_what_both_get_right_cancels_in_the_difference():
    generator = np.random.default_rng(0)
    control = (generator.random(200) < 0.5).astype(float)
    right = control.copy()
    right[np.flatnonzero(control == 0)[:20]] = 1  # 10 % more
    found = record(right, {"words": control}, [str(i) for i in range(200)])
    low, high = found.detail["interval"]
    difference = found.detail["differences"]["words"]
    assert difference["estimate"] == pytest.approx(0.1) and 0 < difference["low"] < 0.1 < difference["high"]
    assert difference["high"] - difference["low"] < 0.7 * (high - low)
    assert difference["level"] == found.detail["level"] == 0.95 and difference["n_groups"] == 200
    assert found.detail["timesteps"] == [5]


def test_a_gain_in_a_few_families_is_less_certain_than_one_in_all():
    right, control = np.ones(80), np.ones(80)
    control[:20] = 0
    families = [str(i // 20) for i in range(80)]  # all of the gain is in the first of four
    assert record(right, {"words": control}, families).detail["differences"]["words"]["low"] <= 0
    alone = record(right, {"words": control}, [str(i) for i in range(80)])
    assert alone.detail["differences"]["words"]["low"] > 0


def test_one_family_has_no_interval():
    found = record(np.array([1.0, 0.0]), {"chance": np.full(2, 0.1)}, ["a", "a"])
    assert found.detail == {"timesteps": [5]} and found.value == 0.5 and found.controls == {"chance": 0.1}


def test_values_of_attributes_have_their_samples_and_controls():
    attributes = [{"style": "noto"}, {"style": "noto"}, {"style": "twemoji"}, {}]
    found = record(np.array([1.0, 0, 1, 1]), {"words": np.array([0.0, 0, 1, 0])}, list("abcd"), attributes, ["style"])
    assert found.detail["by"] == {
        "style": {
            "(none)": {"accuracy": 1.0, "n": 1, "controls": {"words": 0.0}},
            "noto": {"accuracy": 0.5, "n": 2, "controls": {"words": 0.0}},
            "twemoji": {"accuracy": 1.0, "n": 1, "controls": {"words": 1.0}},
        }
    }
