import pytest
import torch

from diffprobe.core.errors import NonFinite
from diffprobe.metrics.mean_std_ratio import MeanStdRatio


def test_it_is_the_ratio_of_norms_and_batches_do_not_matter():
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * 2 + 10
    metric = MeanStdRatio(16)
    for part in x.split(64):
        metric.update(part)
    expected = float(x.double().mean(0).norm() / x.double().std(0, unbiased=False).norm())
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(5, rel=0.05)


def test_centred_features_have_none():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).double()
    metric = MeanStdRatio(4)
    metric.update(x - x.mean(0))
    assert float(metric.compute()) < 1e-12


@pytest.mark.parametrize("x", [torch.full((9, 2), 0.1), torch.tensor([[float("inf")], [0.0]])])
def test_features_that_have_no_spread_are_an_error(x):
    metric = MeanStdRatio(x.shape[1])
    metric.update(x)
    with pytest.raises(NonFinite):
        metric.compute()
