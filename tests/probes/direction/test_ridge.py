import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.direction.mean_difference import mean_difference
from diffprobe.probes.direction.ridge import Config, ridge


def confounded(n=4000, seed=0):
    """The label moves dimension 0; dimension 1 follows it through a large nuisance."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(n, generator=generator) > 0.5
    x = torch.randn(n, 5, generator=generator)
    nuisance = 3 * torch.randn(n, generator=generator) + 2 * positive
    x[:, 0] += 2 * positive + nuisance
    x[:, 1] += nuisance
    return x, positive


def test_equals_the_normal_equations():
    x, positive = confounded()
    centred = x.double() - x.double().mean(0)
    penalty = 0.3 * centred.square().mean(0).mean() * len(x)
    expected = torch.linalg.lstsq(
        torch.cat([centred, penalty.sqrt() * torch.eye(5, dtype=torch.float64)]),
        torch.cat([positive.double() - positive.double().mean(), torch.zeros(5, dtype=torch.float64)])[:, None],
    ).solution[:, 0]
    torch.testing.assert_close(ridge(x, positive, alpha=0.3), expected)


def test_discounts_a_nuisance_and_tends_to_the_mean_difference():
    x, positive = confounded()
    found = ridge(x, positive, alpha=1e-4)
    assert found[1] < 0 < found[0]  # subtracts what both dimensions share
    far = ridge(x, positive, alpha=1e6)
    assert float(F.cosine_similarity(far, mean_difference(x, positive), dim=0)) > 0.9999


def test_bad_input():
    with pytest.raises(ConfigError, match="alpha"):
        Config(positive="a", alpha=0.0)
    with pytest.raises(EmptyClass):
        ridge(torch.randn(3, 2), torch.zeros(3, dtype=torch.bool))
