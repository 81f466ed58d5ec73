"""Success at matched collateral: curves, their interpolation, and paired intervals."""

import numpy as np
import pytest

from diffprobe.analysis.matched_collateral import SteeringCurve, matched, point_intervals, success_at
from diffprobe.core.errors import ConfigError, TooFewGroups

PROMPTS = [f"p{i // 4}" for i in range(40)]


def curve(success, collateral, strengths=None):
    """Return a curve whose images have these rates, spread evenly over them."""
    n = len(PROMPTS)

    def rows(rates):
        return np.array([[(i * 7 % n) < round(rate * n) for i in range(n)] for rate in rates], dtype=float)

    return SteeringCurve(
        strengths=tuple(strengths or range(len(success))), success=rows(success), collateral=rows(collateral)
    )


def test_success_at_follows_the_lines_between_points_and_takes_the_best_with_less_collateral():
    success, collateral = np.array([0.2, 0.9, 0.5]), np.array([0.0, 0.2, 0.4])
    assert success_at(success, collateral, 0.0) == 0.2
    assert success_at(success, collateral, 0.1) == pytest.approx(0.55)
    assert success_at(success, collateral, 0.3) == 0.9  # a smaller strength does better with less
    assert success_at(success, collateral, 5.0) == 0.9
    rng = np.random.default_rng(0)
    for _ in range(50):  # equals a fine walk along the curve
        s, c = rng.random(5), np.concatenate([[0.0], rng.random(4)])
        t = np.linspace(0, 4, 40001)
        walk_s, walk_c = np.interp(t, range(5), s), np.interp(t, range(5), c)
        level = rng.random()
        assert success_at(s, c, level) == pytest.approx(walk_s[walk_c <= level].max(), abs=1e-3)


def test_collateral_is_the_share_of_other_factors_that_change():
    codes = {
        "own": np.array([[0, 1], [1, 1]]), "a": np.array([[3, 4], [3, 5]]), "b": np.array([[1, 1], [2, 0]]),
    }  # fmt: skip
    found = SteeringCurve.of_readings((0.0, 2.0), codes, factor="own", value=1)
    assert found.success.tolist() == [[0, 1], [1, 1]]
    assert found.collateral.tolist() == [[0, 0], [0.5, 1.0]]


def test_methods_are_compared_at_the_collateral_of_the_reference():
    curves = {"prompt": curve([0.2, 0.9], [0.0, 0.2]), "same": curve([0.2, 0.9], [0.0, 0.2]),
              "costly": curve([0.2, 0.9], [0.0, 0.8]), "weak": curve([0.2, 0.3], [0.0, 0.1])}  # fmt: skip
    found = matched(curves, PROMPTS, reference="prompt", level=None, n_resamples=200)
    assert found["prompt"].level == pytest.approx(0.2) and found["prompt"].minus_reference is None
    same = found["same"].minus_reference
    assert same is not None and same.low == same.high == 0
    costly = found["costly"].minus_reference
    assert costly is not None and costly.high < 0
    assert found["costly"].success.estimate == pytest.approx(0.2 + 0.7 * 0.25)
    assert [found[name].reaches for name in curves] == [True, True, True, False]
    fixed = matched(curves, PROMPTS, reference="prompt", level=0.1, n_resamples=50)
    assert fixed["prompt"].success.estimate == pytest.approx(0.55) and fixed["weak"].reaches
    again = matched(curves, PROMPTS, reference="prompt", level=None, n_resamples=200)
    assert again == found


def test_the_mean_of_curves_is_taken_image_by_image():
    one, other = curve([0.0, 1.0], [0.0, 0.0]), curve([0.0, 0.0], [0.0, 1.0])
    mean = SteeringCurve.mean([one, other])
    assert mean.success[1].tolist() == mean.collateral[1].tolist() == [0.5] * len(PROMPTS)
    with pytest.raises(ConfigError, match="different strengths"):
        SteeringCurve.mean([one, curve([0.0, 1.0], [0.0, 0.0], strengths=(0, 5))])


def test_points_have_intervals_over_prompts():
    points = point_intervals(curve([0.5, 0.9], [0.0, 0.2]), PROMPTS, n_resamples=100)
    assert [point[0].estimate for point in points] == [0.5, 0.9]
    assert points[1][1].low <= 0.2 <= points[1][1].high and points[0][1].high == 0


def test_bad_input():
    with pytest.raises(ConfigError, match="ascending from 0"):
        curve([0.1, 0.2], [0.0, 0.1], strengths=(1, 2))
    with pytest.raises(ConfigError, match="has to be 0"):
        curve([0.1, 0.2], [0.5, 0.1])
    with pytest.raises(ConfigError, match=r"\(3, images\)"):
        SteeringCurve(strengths=(0, 1, 2), success=np.zeros((3, 2)), collateral=np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="'prompt' has no curve"):
        matched({"a": curve([0.1, 0.2], [0.0, 0.1])}, PROMPTS, reference="prompt", level=None)
    with pytest.raises(ConfigError, match="3 prompts"):
        matched({"a": curve([0.1, 0.2], [0.0, 0.1])}, PROMPTS[:3], reference="a", level=None)
    with pytest.raises(TooFewGroups):
        matched({"a": curve([0.1, 0.2], [0.0, 0.1])}, ["p"] * 40, reference="a", level=None)
