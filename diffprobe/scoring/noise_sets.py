"""Sets of (timestep, noise) pairs at which a denoiser is scored; all candidates of a sample share them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.rng import noise_for


def spread_timesteps(n: int, n_timesteps: int) -> list[int]:
    """Return `n` timesteps evenly spread over the training grid, each in the middle of its part.

    An odd multiple of parts holds the same middles: the 10 of a grid are among its 50.

    >>> spread_timesteps(4, 1000)
    [125, 375, 625, 875]
    """
    return [n_timesteps * (2 * part + 1) // (2 * n) for part in range(n)]


def stack_noise(
    seed: int, keys: Sequence[str], draw: int, shape: Sequence[int]
) -> Float[Tensor, "sample channels height width"]:
    """Return the standard normal noise of one draw for each sample, float32 on the CPU.

    Args:
        seed: seed of the noise; with key and draw it fixes the noise.
        keys: keys of the samples.
        draw: number of the draw. A scorer that draws afresh at every timestep passes the timestep.
        shape: channels, height and width of a latent.
    """
    return torch.stack([noise_for(seed, key, draw, tuple(shape)) for key in keys])
