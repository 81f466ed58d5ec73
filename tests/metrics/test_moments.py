import pytest
import torch

from diffprobe.core.errors import NonFinite
from diffprobe.metrics.moments import RunningMoments


def test_sums_equal_those_of_the_whole_set():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(101, 4, generator=generator) + 10
    y = torch.randint(0, 2, (101, 3), generator=generator)
    running = RunningMoments(4, 3, gram=True)
    for i in range(0, 101, 20):
        running.update(x[i : i + 20], y[i : i + 20])
    got, x = running.compute(), x.double()
    assert got.n == 101 and got.y.tolist() == y.sum(0).tolist()
    torch.testing.assert_close(got.mean, x.mean(0))
    torch.testing.assert_close(got.variance, x.var(0, unbiased=False))
    torch.testing.assert_close(got.xy[:, 1], x[y[:, 1] == 1].sum(0))
    torch.testing.assert_close(got.gram, x.T @ x)


def test_a_constant_dimension_has_variance_zero_not_rounding():
    running = RunningMoments(1)
    running.update(torch.full((1000, 1), 0.1))
    assert float(running.compute().variance) == 0.0


def test_nan_is_an_error():
    running = RunningMoments(2)
    running.update(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(NonFinite, match="1 of 2 feature dimensions"):
        running.compute()
