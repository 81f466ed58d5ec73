"""Dose-response on planted features: the moved coordinate is found, in its unit, with an interval that covers it."""

import numpy as np
import pytest

from diffprobe.analysis.dose_response import DataCloud, dose_response
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

RNG = np.random.default_rng(0)
SD = np.array([1.0, 3.0, 0.5, 2.0])
CLOUD = DataCloud(features=RNG.standard_normal((300, 4)) * SD)
AXES = {"steered": np.eye(4)[1], "other": np.eye(4)[2]}
PROMPTS = [f"prompt {i // 4}" for i in range(40)]
BASE = RNG.standard_normal((40, 4)) * SD


def steered(strength: float, gain: float = 0.5) -> np.ndarray:
    return BASE + strength * gain * CLOUD.spread(AXES["steered"]) * AXES["steered"]


def test_a_planted_effect_is_found_in_standard_deviations() -> None:
    found = dose_response({s: steered(s) for s in (2.0, -2.0, 0.0)}, AXES, CLOUD, PROMPTS, n_resamples=200)
    assert [dose.strength for dose in found] == [-2, 0, 2]
    moved = [dose.moved["steered"].estimate for dose in found]
    assert moved == pytest.approx([-1, 0, 1])
    assert all(dose.moved["other"].estimate == pytest.approx(0) for dose in found)


def test_the_interval_covers_the_effect_that_varies_by_prompt() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        gain = np.repeat(0.5 + 0.2 * rng.standard_normal(10), 4)[:, None]
        given = {s: BASE + s * gain * CLOUD.spread(AXES["steered"]) * AXES["steered"] for s in (-1.0, 0.0, 1.0)}
        interval = dose_response(given, AXES, CLOUD, PROMPTS, n_resamples=200)[2].moved["steered"]
        covered += interval.low <= 0.5 <= interval.high
    assert 88 <= covered <= 100


def test_distance_is_one_within_the_data_and_grows_outside() -> None:
    fresh = RNG.standard_normal((200, 4)) * SD
    inside = CLOUD.distances(fresh)
    assert 0.8 < np.median(inside) < 1.25
    away = CLOUD.distances(fresh + 8 * SD * AXES["other"])
    assert (away > 3).all()
    plain = [
        np.sqrt(np.sort((((row - CLOUD.features) / CLOUD.features.std(0)) ** 2).sum(1))[: CLOUD.neighbours]).mean()
        for row in fresh
    ]
    assert inside / inside[0] == pytest.approx(np.array(plain) / plain[0])


def test_dimensions_that_do_not_vary_have_no_distance() -> None:
    flat = DataCloud(features=np.hstack([CLOUD.features, np.ones((300, 1))]))
    rows = np.hstack([BASE, 7 * np.ones((40, 1))])
    assert flat.distances(rows) == pytest.approx(CLOUD.distances(BASE))
    with pytest.raises(EmptyClass, match="do not vary"):
        flat.spread(np.eye(5)[4])


def test_one_prompt_has_no_interval() -> None:
    (dose, *_) = dose_response({-1.0: steered(-1), 0.0: BASE, 1.0: steered(1)}, AXES, CLOUD, ["a"] * 40)
    assert isinstance(dose.moved["steered"], float) and isinstance(dose.distance, float)


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="strength 0"):
        dose_response({1.0: BASE}, AXES, CLOUD, PROMPTS)
    with pytest.raises(ConfigError, match="40 images for 3"):
        dose_response({0.0: BASE}, AXES, CLOUD, ["a", "b", "c"])
    with pytest.raises(NonFinite, match="strength 0"):
        dose_response({0.0: BASE * np.nan}, AXES, CLOUD, PROMPTS)
    with pytest.raises(EmptyClass, match="3 samples"):
        DataCloud(features=np.zeros((3, 2)))
    with pytest.raises(NonFinite):
        DataCloud(features=np.full((30, 2), np.inf))
