import torch

from diffprobe.core.rng import noise_for
from diffprobe.scoring.noise_sets import spread_timesteps, stack_noise


def test_timesteps_are_the_middles_of_equal_parts() -> None:
    assert spread_timesteps(10, 10) == list(range(10))
    assert [t // 100 for t in spread_timesteps(10, 1000)] == list(range(10))
    assert set(spread_timesteps(10, 1000)) <= set(spread_timesteps(50, 1000))


def test_noise_is_that_of_seed_key_and_draw() -> None:
    noise = stack_noise(3, ["a", "b"], 7, (4, 2, 2))
    assert torch.equal(noise, torch.stack([noise_for(3, key, 7, (4, 2, 2)) for key in "ab"]))
