"""Codes of neurons, components and random directions: as plain projections, with the density of a dictionary."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.core.errors import ConfigError, NonFinite


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((500, 5)) @ np.diag([5.0, 2.0, 1.0, 0.5, 0.0]) + 3.0
    return torch.from_numpy(x)


def dense(codes, x):
    values, indices = codes.encode(x)
    return torch.zeros(len(x), codes.n_latents, dtype=torch.float64).scatter_(1, indices, values)


def test_neurons_are_standardised_and_have_both_signs(features):
    mean, variance = features.mean(0), features.var(0, correction=0)
    codes = LinearCodes.neurons(mean, variance, k=10)
    found = dense(codes, features)
    z = (features - mean)[:, :4] / variance[:4].sqrt()
    torch.testing.assert_close(found[:, :4], z.relu())
    torch.testing.assert_close(found[:, 5:9], (-z).relu())
    assert (found[:, [4, 9]] == 0).all()  # constant
    assert ((dense(LinearCodes.neurons(mean, variance, k=2), features) > 0).sum(1) <= 2).all()


def test_components_are_those_of_a_singular_value_decomposition(features):
    mean = features.mean(0)
    centred = features - mean
    codes = LinearCodes.components(mean, centred.T @ centred / len(features), k=8)
    assert codes.n_latents == 8  # the fifth component has no variance
    found = dense(codes, features)
    whole = found[:, :4] - found[:, 4:]
    u = torch.linalg.svd(centred, full_matrices=False)[0][:, :4] * len(features) ** 0.5
    torch.testing.assert_close(whole.abs(), u.abs(), atol=1e-9, rtol=1e-6)
    assert LinearCodes.components(mean, torch.eye(5), k=8, n=2).n_latents == 4


def test_random_directions_have_the_density_of_the_dictionary(features):
    codes = LinearCodes.random(features.mean(0), 64, 4, seed=1)
    found = dense(codes, features)
    assert codes.n_latents == 64 and ((found > 0).sum(1) == 4).all()
    torch.testing.assert_close(codes.directions.norm(dim=1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(LinearCodes.random(features.mean(0), 64, 4, seed=1).directions, codes.directions)
    assert not torch.equal(LinearCodes.random(features.mean(0), 64, 4, seed=2).directions, codes.directions)


def test_each_row_is_encoded_by_itself(features):
    codes = LinearCodes.random(features.mean(0), 32, 3)
    torch.testing.assert_close(torch.cat([dense(codes, part) for part in features.split(7)]), dense(codes, features))


def test_bad_input_is_refused(features):
    with pytest.raises(ConfigError, match="k=9 of 4 directions"):
        LinearCodes(torch.eye(4), torch.zeros(4), 9)
    with pytest.raises(ConfigError, match="width 4 and a centre of width 3"):
        LinearCodes(torch.eye(4), torch.zeros(3), 1)
    with pytest.raises(ConfigError, match="features of width 5; the directions have 4"):
        LinearCodes(torch.eye(4), torch.zeros(4), 1).encode(features)
    with pytest.raises(NonFinite):
        LinearCodes(torch.eye(4) * torch.nan, torch.zeros(4), 1)
    with pytest.raises(ConfigError, match="no variance"):
        LinearCodes.components(torch.zeros(3), torch.zeros(3, 3), 1)
