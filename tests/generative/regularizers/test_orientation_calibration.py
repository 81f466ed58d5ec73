"""Replaced origins: their probabilities against a loop, the direction of replacement, and what is left alone."""

import math

import pytest
import torch

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import ReverseKernels, TrainingClasses
from diffprobe.generative.regularizers.orientation_calibration import Config, make, origin_weights

PAIR = TrainingClasses(attribute="role", names=("cook", "judge"), counts=(90, 10))
PROCESS = ForwardProcess(torch.linspace(0.999, 0.001, 100))
CLEAN = torch.tensor([[1.0, 0.0], [0.9, 0.2], [-1.0, 0.5], [0.0, 0.0]])[:, :, None, None]


def retarget(config, timesteps, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(CLEAN.shape, generator=generator)
    regularizer = make(config, PROCESS, ReverseKernels(PROCESS, "epsilon"), PAIR)
    return noise, *regularizer.retarget(CLEAN, noise, torch.tensor(timesteps), torch.tensor(classes), generator)


def origins(found):
    """Return the row of CLEAN of each origin."""
    return [int((CLEAN == one).flatten(1).all(1).nonzero()[0, 0]) for one in found]


def test_probabilities_are_those_of_the_mixture_of_images():
    timesteps = torch.tensor([3, 40, 70, 99])
    noised = PROCESS.add_noise(CLEAN, torch.ones_like(CLEAN), timesteps)
    found = origin_weights(PROCESS, CLEAN, noised, timesteps)
    for row, t in enumerate(timesteps.tolist()):
        signal, sigma = float(PROCESS.signal[t]), float(PROCESS.sigma[t])
        densities = [
            math.prod(
                math.exp(-((float(x) - signal * float(m)) ** 2) / (2 * sigma**2))
                for x, m in zip(noised[row].flatten(), image.flatten(), strict=True)
            )
            for image in CLEAN
        ]
        expected = torch.tensor(densities, dtype=torch.float64) / sum(densities)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


def test_without_noise_nothing_is_replaced_and_the_noise_is_untouched():
    noise, clean, new = retarget(Config(direction="both"), [0] * 4, [0, 1, 0, 1])
    assert torch.equal(clean, CLEAN) and torch.equal(new, noise)


@pytest.mark.parametrize(
    ("direction", "never"),
    [("tail_to_head", (0, 1)), ("head_to_tail", (1, 0)), ("both", None)],
)
def test_the_direction_restricts_replacements(direction, never):
    classes, seen = [0, 1, 0, 1], set()
    for seed in range(30):
        _, clean, _ = retarget(Config(direction=direction), [99] * 4, classes, seed)
        seen |= {(classes[own], classes[new]) for own, new in enumerate(origins(clean))}
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)} - {never}


def test_the_last_timestep_ends_replacement():
    replaced = [0, 0]
    for seed in range(30):
        _, clean, _ = retarget(Config(direction="both", last_timestep=80), [79, 79, 80, 99], [0, 1, 0, 1], seed)
        rows = origins(clean)
        replaced[0] += rows[:2] != [0, 1]
        replaced[1] += rows[2:] != [2, 3]
    assert replaced[0] > 0 and replaced[1] == 0
