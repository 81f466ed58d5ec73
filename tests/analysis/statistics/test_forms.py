"""Forms of a statistic: weighted means, areas with ties, differences of any two."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from diffprobe.analysis.statistics import area_of, difference, evaluate, mean_of, mean_statistic
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

ROWS = np.random.default_rng(2).integers(30, size=50)


def test_an_area_is_that_of_scikit_learn_with_ties_and_repeats():
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=30).round(), rng.random(30) < 0.5
    area = area_of(scores, positive)
    assert evaluate(area, ROWS) == pytest.approx(roc_auc_score(positive[ROWS], scores[ROWS]))
    with pytest.raises(EmptyClass, match="not defined"):
        evaluate(area, np.flatnonzero(positive))


def test_a_difference_of_any_two_forms():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30))
    mean, area = mean_of(x), area_of(x, y > 0)
    expected = x[ROWS].mean() - y[ROWS].mean()
    assert evaluate(difference(mean, mean_of(y)), ROWS) == pytest.approx(expected)
    assert evaluate(difference(mean, lambda rows: float(y[rows].mean())), ROWS) == pytest.approx(expected)
    assert evaluate(difference(area, area_of(-x, y > 0)), ROWS) == pytest.approx(2 * evaluate(area, ROWS) - 1)
    assert evaluate(difference(area, mean), ROWS) == pytest.approx(evaluate(area, ROWS) - x[ROWS].mean())


def test_a_mean_of_any_forms():
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(3, 30))
    expected = (x[ROWS].mean() + y[ROWS].mean() + z[ROWS].mean()) / 3
    assert evaluate(mean_statistic([mean_of(x), mean_of(y), mean_of(z)]), ROWS) == pytest.approx(expected)
    mixed = [mean_of(x), lambda rows: float(y[rows].mean()), mean_of(z)]
    assert evaluate(mean_statistic(mixed), ROWS) == pytest.approx(expected)
    one, other = area_of(x, y > 0), area_of(z, y > 0)
    both = (evaluate(one, ROWS) + evaluate(other, ROWS)) / 2
    assert evaluate(mean_statistic([one, other]), ROWS) == pytest.approx(both)
    assert mean_statistic([one]) is one
    with pytest.raises(ConfigError, match="0 statistics"):
        mean_statistic([])
    with pytest.raises(ConfigError, match=r"\[2, 3\]"):
        mean_statistic([mean_of(np.zeros(2)), mean_of(np.zeros(3))])


def test_faults_are_named():
    with pytest.raises(ConfigError, match="2 and 3 samples"):
        difference(mean_of(np.zeros(2)), mean_of(np.zeros(3)))
    with pytest.raises(NonFinite, match="sample 1"):
        mean_of(np.array([0.0, np.nan]))
    with pytest.raises(NonFinite, match="inf"):
        evaluate(lambda rows: float("inf"), ROWS)
