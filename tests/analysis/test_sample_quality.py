"""Precision, recall, density, coverage and Frechet distance against loops, closed forms and cases that are known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffprobe.analysis.sample_quality import frechet_distance, neighbourhoods
from diffprobe.core.errors import ConfigError


def normal(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def radius(values, row, k):
    return sorted(float(np.linalg.norm(values[row] - other)) for n, other in enumerate(values) if n != row)[k - 1]


def test_the_measures_are_those_of_a_loop():
    real, generated, k = normal(30), 0.7 * normal(25, seed=1) + 0.4, 5
    found = neighbourhoods(real, generated, k=k)
    of_real = [radius(real, row, k) for row in range(30)]
    of_generated = [radius(generated, row, k) for row in range(25)]
    apart = [[float(np.linalg.norm(g - r)) for r in real] for g in generated]
    assert found.precision.tolist() == [any(apart[g][r] <= of_real[r] for r in range(30)) for g in range(25)]
    assert found.density.tolist() == [sum(apart[g][r] <= of_real[r] for r in range(30)) / k for g in range(25)]
    assert found.recall.tolist() == [any(apart[g][r] <= of_generated[g] for g in range(25)) for r in range(30)]
    assert found.coverage.tolist() == [any(apart[g][r] <= of_real[r] for g in range(25)) for r in range(30)]


def test_collapse_and_distant_samples_are_told_apart():
    real = normal(200)
    same = neighbourhoods(real, normal(200, seed=1))
    collapsed = neighbourhoods(real, 0.01 * normal(200, seed=1))
    distant = neighbourhoods(real, normal(200, seed=1) + 100)
    assert same.precision.mean() > 0.8 and same.recall.mean() > 0.8 and same.coverage.mean() > 0.8
    assert collapsed.precision.mean() == 1 and collapsed.recall.mean() < 0.05 and collapsed.coverage.mean() < 0.3
    for name in ("precision", "density", "recall", "coverage"):
        assert getattr(distant, name).mean() == 0


def test_the_frechet_distance_is_that_of_a_matrix_root_and_zero_for_equal_sets():
    real, generated = normal(50, 4), 0.5 * normal(60, 4, seed=1) + 1
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = sqrtm(first @ second).real
    expected = ((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, generated) == pytest.approx(frechet_distance(generated, real), rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_the_order_of_samples_does_not_matter():
    real, generated, order = normal(30), normal(30, seed=1), np.random.default_rng(2).permutation(30)
    one, two = neighbourhoods(real, generated), neighbourhoods(real[order], generated)
    assert one.precision.tolist() == two.precision.tolist()
    assert one.recall[order].tolist() == two.recall.tolist()
    assert frechet_distance(real[order], generated) == pytest.approx(frechet_distance(real, generated))


def test_too_few_samples_and_other_features_are_refused():
    with pytest.raises(ConfigError, match="more than 5 generated.*5"):
        neighbourhoods(normal(30), normal(5))
    with pytest.raises(ConfigError, match="3 features.*4"):
        neighbourhoods(normal(30), normal(30, 4))
    with pytest.raises(ConfigError, match="at least 2"):
        frechet_distance(normal(1), normal(3))
