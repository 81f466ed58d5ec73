import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.direction.base import moments_of
from diffprobe.probes.direction.lda import Config, estimate
from diffprobe.probes.direction.mean_difference import mean_difference
from tests.probes.direction.test_ridge import confounded


def direction(x, positive, shrinkage=None):
    found = estimate(moments_of(x, positive, gram=True), Config(positive="", shrinkage=shrinkage))[:, 0]
    return F.normalize(found, dim=0)


@pytest.mark.parametrize("shrinkage", [0.02, 0.4, 1.0])
def test_equals_scikit_learn(shrinkage):
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    x, positive = confounded(n=200)
    reference = analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    reference.fit(x.double().numpy(), positive.numpy())
    found = direction(x, positive, shrinkage).numpy()
    np.testing.assert_allclose(found, reference.coef_[0] / np.linalg.norm(reference.coef_[0]), atol=1e-9)


@pytest.mark.parametrize("n", [30, 300])
def test_the_shrinkage_is_that_of_scikit_learn(n):
    covariance = pytest.importorskip("sklearn.covariance")
    x, positive = confounded(n=n)
    y = x.double()
    for side in (positive, ~positive):
        y[side] -= y[side].mean(0)
    fitted = covariance.OAS(assume_centered=True).fit(y.numpy())
    assert 0 < fitted.shrinkage_ < 1
    apart = mean_difference(x, positive).numpy()
    expected = np.linalg.solve(fitted.covariance_, apart)
    np.testing.assert_allclose(direction(x, positive).numpy(), expected / np.linalg.norm(expected), atol=1e-8)


def test_ends_at_the_mean_difference_and_does_not_depend_on_order_or_scale():
    x, positive = confounded(n=500)
    found = direction(x, positive)
    assert float(direction(x, positive, 1.0) @ F.normalize(mean_difference(x, positive), dim=0)) > 1 - 1e-9
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(direction(x[order], positive[order]), found)
    torch.testing.assert_close(direction(5 * x + 2, positive), found, atol=1e-5, rtol=1e-4)


def test_each_column_has_a_shrinkage_of_its_own():
    x, positive = confounded(n=60)
    other = torch.rand(60, generator=torch.Generator().manual_seed(1)) > 0.5
    both = estimate(moments_of(x, torch.stack([positive, other], 1), gram=True), Config(positive=""))
    for column, label in enumerate((positive, other)):
        torch.testing.assert_close(F.normalize(both[:, column], dim=0), direction(x, label))


def test_bad_input():
    with pytest.raises(ConfigError, match="shrinkage=0"):
        Config(positive="a", shrinkage=0.0)
    with pytest.raises(EmptyClass):
        direction(torch.randn(3, 2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="vary within"):
        direction(torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]]), torch.tensor([False, False, True]))
