import pytest
import torch

from diffprobe.core.errors import NonFinite
from diffprobe.metrics.fvu import Fvu, fvu


def two_pass(x, x_hat):
    x, x_hat = x.double(), x_hat.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_streaming_equals_two_passes_at_a_large_common_mean():
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) + 100.0
    x_hat = x + 0.3 * torch.randn(500, 7, generator=torch.Generator().manual_seed(1))
    metric = Fvu(7)
    for i in range(0, 500, 64):  # the last batch is smaller
        metric.update(x[i : i + 64], x_hat[i : i + 64])
    assert float(metric.compute()) == pytest.approx(two_pass(x, x_hat), rel=1e-9)


def test_a_constant_offset_does_not_flatter_it():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    guess = x.mean(0).expand_as(x)
    assert fvu(x, guess) == pytest.approx(1.0)
    assert fvu(x + 50, guess + 50) == pytest.approx(1.0, rel=1e-5)


def test_rotation_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(64, 5, generator=generator), torch.randn(64, 5, generator=generator)
    q = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    assert fvu(x @ q, x_hat @ q) == pytest.approx(fvu(x, x_hat), rel=1e-5)


@pytest.mark.parametrize("x", [torch.ones(4, 2), torch.tensor([[0.0], [float("nan")]])])
def test_no_variance_is_an_error(x):
    with pytest.raises(NonFinite, match="centred sum of squares"):
        fvu(x, x)


@pytest.mark.parametrize(("mean", "tolerance"), [(1e3, 1e-9), (-1e4, 1e-7), (1e5, 1e-5)])
def test_the_error_stays_below_what_the_docstring_says(mean, tolerance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 5, generator=generator, dtype=torch.float64) + mean
    x_hat = x + 0.1 * torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    metric = Fvu(5)
    for part, part_hat in zip(x.split(130), x_hat.split(130), strict=True):
        metric.update(part, part_hat)
    assert float(metric.compute()) == pytest.approx(two_pass(x, x_hat), rel=tolerance)


def test_rounding_is_not_taken_for_variance():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    with pytest.raises(NonFinite, match="centred sum of squares"):
        fvu(x, x)
