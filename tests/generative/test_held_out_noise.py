"""Noise of held-out images depends on their keys alone."""

import torch

from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.held_out_noise import held_out_noise


def test_an_image_has_one_noise_and_timestep_in_any_batch() -> None:
    clean = torch.zeros(3, 2, 4, 4)
    noise, timesteps = held_out_noise(["a", "b", "c"], clean, 1000)
    alone, at = held_out_noise(["b"], clean[:1], 1000)
    assert torch.equal(noise[1:2], alone) and torch.equal(timesteps[1:2], at)
    assert torch.equal(alone[0], noise_for(0, "b", 0, (2, 4, 4))) and int(at) == derive_seed("timestep", "b") % 1000
    assert not torch.equal(noise[0], noise[1]) and len(set(timesteps.tolist())) == 3


def test_it_has_the_precision_of_the_latents() -> None:
    noise, timesteps = held_out_noise(["a"], torch.zeros(1, 2, 4, 4, dtype=torch.float64), 10)
    assert noise.dtype == torch.float64 and 0 <= int(timesteps) < 10
