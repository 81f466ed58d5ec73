"""Covariate-adjusted least squares, on confounded samples with a planted direction."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError
from diffprobe.probes.direction import Direction
from diffprobe.probes.direction.adjusted_regression import Config


def simulated(n=2000, d=128, shift=8.0, seed=0):
    """Power-law covariance of trace d, an attribute and a nuisance of equal shift, which agree in 4 of 5 samples."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = 1 / torch.arange(1, d + 1, dtype=torch.float64)
    spectrum = spectrum * d / spectrum.sum()
    axes = F.normalize(torch.randn(2, d, generator=generator, dtype=torch.float64), dim=1)
    y = torch.rand(n, generator=generator) > 0.5
    z = torch.where(torch.rand(n, generator=generator) < 0.8, y, ~y)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64) * spectrum.sqrt()
    return noise + shift * (y[:, None] * axes[0] + z[:, None] * axes[1]), y, z, axes


def test_the_nuisance_does_not_leak():
    adjusted, plain = [], []
    for seed in range(5):
        x, y, z, (truth, nuisance) = simulated(seed=seed)
        nuisance = F.normalize(nuisance - (nuisance @ truth) * truth, dim=0)  # what the attribute itself does not move
        one = Direction.fit(x, y, estimator="adjusted_regression", covariates=F.one_hot(z.long()).double())
        other = Direction.fit(x, y)
        adjusted.append([float(one.vector.double() @ axis) for axis in (truth, nuisance)])
        plain.append([float(other.vector.double() @ axis) for axis in (truth, nuisance)])
    (cosine, leak), (plain_cosine, plain_leak) = np.mean(adjusted, 0), np.mean(plain, 0)
    assert abs(leak) < 0.05 < 0.4 < plain_leak
    assert cosine > 0.95 > plain_cosine


def test_equals_the_joint_regression():
    x, y, z, _ = simulated(n=300, d=6)
    design = np.stack([np.ones(300), y.double().numpy(), z.double().numpy()], axis=1)
    expected = np.linalg.lstsq(design, x.numpy(), rcond=None)[0][1]
    columns = F.one_hot(z.long()).double()
    found = Direction.fit(x, y, estimator="adjusted_regression", covariates=columns, nuisance_penalty=1e-12)
    np.testing.assert_allclose(found.vector.numpy(), expected / np.linalg.norm(expected), atol=1e-6)


def test_bad_input():
    x, y, z, _ = simulated(n=60, d=6)
    columns = F.one_hot(z.long()).double()
    with pytest.raises(ConfigError, match="at least one"):
        Config(positive="a")
    with pytest.raises(ConfigError, match="nuisance_penalty=0"):
        Config(positive="a", nuisances=("b",), nuisance_penalty=0.0)
    with pytest.raises(ConfigError, match="needs covariates"):
        Direction.fit(x, y, estimator="adjusted_regression")
    with pytest.raises(ConfigError, match="does not take"):
        Direction.fit(x, y, covariates=columns)
    with pytest.raises(ConfigError, match="determine"):
        Direction.fit(x, y, estimator="adjusted_regression", covariates=F.one_hot(y.long()).double())
