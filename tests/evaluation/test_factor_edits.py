"""Edits of one value: what is chosen from training samples, and the random latents of equal density."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.evaluation.factor_edits import (
    DIRECTION,
    LATENT,
    NEURON,
    RANDOM,
    REPLACE,
    TrainingRows,
    equal_density,
    factor_edits,
)
from diffprobe.probes.sae.topk import Config, make
from diffprobe.scoring.edits.latent import mean_activations

D_IN, N_LATENTS = 6, 24


@pytest.fixture(scope="module")
def made():
    """Images of 4 places; of those with the value, one place has a large third number."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(80, 4, D_IN, generator=generator)
    positive = torch.arange(80) % 2 == 0
    rows[positive, 1, 2] += 8
    sae = make(Config(k=3, n_latents=N_LATENTS), D_IN, seed=0)
    flat = rows.flatten(0, 1)
    sae.initialise(flat.mean(0), flat.var(0, correction=0), flat)
    with torch.no_grad():
        sae.W_enc[5] = sae.W_dec[5] = torch.eye(D_IN)[2]
    return sae.eval(), TrainingRows.of(sae, rows), positive


def test_rows_are_encoded_and_summed_up(made):
    sae, training, _ = made
    code = sae.encode(training.flat)
    dense = torch.zeros(len(training.flat), N_LATENTS).scatter_add_(1, code.indices, code.values)
    torch.testing.assert_close(training.density, (dense > 0).float().mean(0))
    torch.testing.assert_close(training.largest, dense.reshape(80, 4, -1).amax(1))
    (mean,) = mean_activations(sae, training.flat, [5])
    assert float(training.means[5]) == pytest.approx(mean, rel=1e-5)


def test_each_method_finds_what_separates_the_value(made):
    sae, training, positive = made
    found = factor_edits(sae, training, positive, ~positive, n_random=2, n_bank=200, seed=0)
    (latent,), (direction,), (neuron,) = (found.edits[name] for name in (LATENT, DIRECTION, NEURON))
    assert latent.latents == (5,) and "latent 5" in found.facts[LATENT]
    assert neuron.neurons == (2,) and neuron.units[0] > 0
    difference = training.rows[positive].mean((0, 1)) - training.rows[~positive].mean((0, 1))
    assert torch.cosine_similarity(direction.vector, difference, dim=0) > 0.9999
    spread = (training.flat @ (difference / difference.norm())).std(correction=0)
    torch.testing.assert_close(direction.vector.norm(), spread)
    assert len(found.edits[RANDOM]) == 2 and all(edit.latents != (5,) for edit in found.edits[RANDOM])
    (replace,) = found.edits[REPLACE]
    moved = replace(training.flat, 1.0)
    assert torch.equal((moved == training.flat).all(1), replace.detector(training.flat))
    lowered = factor_edits(sae, training, ~positive, positive, n_random=1, n_bank=200, seed=0).edits[NEURON][0]
    assert lowered.neurons == (2,) and lowered.units[0] < 0  # the other end lowers the same channel


def test_random_latents_are_among_the_nearest_in_density():
    density = torch.tensor([0.0, 0.5, 0.1, 0.11, 0.09, 0.6, 0.12, 0.0001, 0.095])
    for seed in range(20):
        assert set(equal_density(density, 2, 1, seed=seed)) <= {3, 4, 6, 8}
    assert equal_density(density, 2, 2, seed=1) == equal_density(density, 2, 2, seed=1)
    assert len({equal_density(density, 2, 2, seed=seed) for seed in range(10)}) > 1
    with pytest.raises(ConfigError, match="latent 0 is never active"):
        equal_density(density, 0, 1, seed=0)
    with pytest.raises(EmptyClass, match="7 other latents"):
        equal_density(density, 2, 8, seed=0)


def test_a_value_without_samples_is_refused(made):
    sae, training, positive = made
    with pytest.raises(EmptyClass, match="0 training samples have the value"):
        factor_edits(sae, training, positive & ~positive, positive, n_random=1, n_bank=10, seed=0)
