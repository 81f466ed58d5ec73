"""Directions fitted in memory, without a Trainer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.probes.direction import Direction

ESTIMATORS = ("logistic", "mean_difference", "ridge", "ridge_cv")


def planted(n=2000, d=8, shift=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axis = F.normalize(torch.randn(d, generator=torch.Generator().manual_seed(5)), dim=0)
    y = torch.rand(n, generator=generator) > 0.6
    return 40 + torch.randn(n, d, generator=generator) + shift * y[:, None] * axis, y, axis


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_notebook_needs_three_lines(estimator):
    (x, y, axis), (x_test, y_test, _) = planted(), planted(seed=1)
    direction = Direction.fit(x.numpy(), y.numpy(), estimator=estimator)
    assert direction.score(x_test, y_test) > 0.95
    assert float((direction.predict(x_test) == y_test).double().mean()) > 0.9
    assert float(direction.vector @ axis) > 0.95 and direction.estimator == estimator
    assert direction.scale == pytest.approx(3, rel=0.1)
    means = direction.project(x[y]).mean(), direction.project(x[~y]).mean()
    assert direction.midpoint == pytest.approx(float(sum(means)) / 2, rel=1e-5)


def test_the_logistic_direction_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")

    x, y, _ = planted(n=300)
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    reference = linear_model.LogisticRegression(C=1.0, max_iter=5000, tol=1e-10)
    reference.fit(((x.double() - mean) / std).numpy(), y.numpy())
    expected = torch.from_numpy(reference.coef_[0]) / std
    found = Direction.fit(x, y, estimator="logistic").vector
    np.testing.assert_allclose(found.numpy(), F.normalize(expected, dim=0).numpy(), atol=1e-4)


def test_params_are_those_of_the_estimator():
    x, y, _ = planted(n=200)
    one, other = (Direction.fit(x, y, estimator="ridge", alpha=alpha) for alpha in (0.1, 10.0))
    assert not one.vector.equal(other.vector)
    with pytest.raises(ConfigError, match="alpha"):
        Direction.fit(x, y, alpha=0.1)
    with pytest.raises(UnknownName, match="'rigde'"):
        Direction.fit(x, y, estimator="rigde")


def test_sides():
    x, y, _ = planted(n=200)
    side = y.long()
    side[:20] = -1
    assert Direction.fit(x, side).vector.equal(Direction.fit(x[20:], y[20:]).vector)
    with pytest.raises(EmptyClass, match="0 negative"):
        Direction.fit(x, torch.ones(200, dtype=torch.bool))
    with pytest.raises(ConfigError, match="0 or 1"):
        Direction.fit(x, side + 2)
