"""Noise as a function of (seed, key, draw) alone, so that features do not depend on batch or rank."""

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: str | int) -> int:
    """Hash `parts` to a 63-bit seed. The parts are length-prefixed, so ("a", "bc") and ("ab", "c") differ.

    >>> derive_seed(0, "cat", 0) == derive_seed(0, "cat", 0) != derive_seed(0, "cat", 1)
    True
    """
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def noise_for(seed: int, key: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return the standard normal noise of one sample and draw, float32 on the CPU.

    The CPU generator is used on every device, and all timesteps share the noise, so features do not depend on batch,
    order, rank, worker or accelerator.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed("noise", seed, key, draw))
    return torch.randn(shape, generator=generator)
