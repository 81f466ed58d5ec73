import pytest
import torch
from sklearn.metrics import r2_score

from diffprobe.metrics.explained_variance import ExplainedVariance, explained_variance


def test_it_is_the_variance_weighted_r2_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 3.0, 0.2, 5.0, 1.0]) + 20
    x_hat = x + torch.randn(200, 5, generator=generator)
    metric = ExplainedVariance(5)
    for i in range(0, 200, 70):
        metric.update(x[i : i + 70], x_hat[i : i + 70])
    expected = r2_score(x.double(), x_hat.double(), multioutput="variance_weighted")
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-10)
    assert explained_variance(x, x_hat) == pytest.approx(expected, rel=1e-10)


def test_a_large_mean_explains_nothing():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 100
    assert explained_variance(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, torch.zeros_like(x)) < -1000
