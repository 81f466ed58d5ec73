"""Noise and timesteps of held-out images during training: fixed by the keys, so that curves of runs can be compared."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.rng import derive_seed, noise_for


def held_out_noise(
    keys: Sequence[str], like: Float[Tensor, "batch c h w"], n_timesteps: int
) -> tuple[Float[Tensor, "batch c h w"], Int[Tensor, " batch"]]:
    """Return standard normal noise and one timestep of each image.

    Args:
        keys: of the images.
        like: clean latents, which fix shape, precision and device of the noise.
        n_timesteps: timesteps of the training grid.
    """
    noise = torch.stack([noise_for(0, key, 0, tuple(like.shape[1:])) for key in keys]).to(like)
    timesteps = torch.tensor([derive_seed("timestep", key) % n_timesteps for key in keys], device=like.device)
    return noise, timesteps
