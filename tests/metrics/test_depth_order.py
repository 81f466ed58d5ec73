"""SILog and the order of pairs against plain loops over pixels, and what leaves them unchanged."""

import math

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.metrics.depth_order import log_error_sums, order_accuracy, order_sums, silog


def maps(seed: int, side: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (side, side), generator=generator)
    predicted = (truth + torch.randn(side, side, generator=generator)).round(decimals=0)  # has ties
    return predicted, truth


@pytest.mark.parametrize("seed", range(3))
def test_silog_is_the_spread_of_log_errors(seed: int) -> None:
    predicted, truth = maps(seed)
    found = predicted.abs() + 0.5
    errors = [
        math.log(p) - math.log(t)
        for p, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True)
        if t > 0
    ]
    mean = sum(errors) / len(errors)
    plain = math.sqrt(sum((one - mean) ** 2 for one in errors) / len(errors))
    assert float(silog(log_error_sums(found, truth.float()))) == pytest.approx(plain, abs=1e-9)
    scaled = silog(log_error_sums(found * 3, truth.float()))
    assert float(scaled) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_order_is_that_of_all_pairs(seed: int, gap: int) -> None:
    predicted, truth = maps(seed)
    p, t = predicted.flatten().tolist(), truth.flatten().tolist()
    right, pairs = 0.0, 0
    for i in range(len(p)):
        for j in range(len(p)):
            if t[i] < t[j] and t[j] - t[i] >= gap:
                pairs += 1
                right += 1.0 if p[i] < p[j] else 0.5 if p[i] == p[j] else 0.0
    assert order_sums(predicted, truth, gap=gap).tolist() == [right, pairs]
    assert order_sums(predicted.exp(), truth, gap=gap).tolist() == [right, pairs]  # any monotone change


def test_sums_of_images_are_those_of_all_pixels() -> None:
    one, other = maps(0), maps(1)
    apart = sum(log_error_sums(p.abs(), t.float()) for p, t in (one, other))
    both = log_error_sums(torch.cat([one[0], other[0]]).abs(), torch.cat([one[1], other[1]]).float())
    assert np.allclose(apart, both)


def test_limits() -> None:
    _, truth = maps(0)
    assert float(order_accuracy(order_sums(truth.float(), truth))) == 1
    assert float(order_accuracy(order_sums(-truth.float(), truth))) == 0
    assert float(order_accuracy(order_sums(torch.zeros(7, 7), truth))) == 0.5
    flat = torch.zeros(3, 3)
    assert np.isnan(order_accuracy(order_sums(flat, flat)))
    assert np.isnan(silog(log_error_sums(flat, flat)))


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 2\).*\(3, 3\)"):
        order_sums(torch.zeros(2, 2), torch.zeros(3, 3))
    with pytest.raises(NonFinite):
        log_error_sums(torch.full((2, 2), math.nan), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="gap=-1"):
        order_sums(torch.zeros(2, 2), torch.zeros(2, 2), gap=-1)
    with pytest.raises(ConfigError, match="smallest=0"):
        log_error_sums(torch.ones(2, 2), torch.ones(2, 2), smallest=0)
