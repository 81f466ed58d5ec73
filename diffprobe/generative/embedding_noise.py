"""Gaussian noise on the states of a text encoder, so that captions of similar meaning get similar images."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def add_embedding_noise(
    states: Float[Tensor, "batch token width"], captions: Sequence[str], *, std: float, generator: torch.Generator
) -> Float[Tensor, "batch token width"]:
    """Add normal noise to the states of non-empty captions.

    Half of the variance is common to all tokens of a caption, half is independent per token. In a small data set each
    name has one image; the noise keeps the denoiser from treating every name as an isolated point.

    Args:
        states: last hidden states of a text encoder.
        captions: one per row; states of the empty caption are unchanged, because guidance relies on them.
        std: standard deviation of the noise, as a fraction of the standard deviation of the states; 0 adds none.
        generator: source of the noise, on the CPU.
    """
    if std == 0:
        return states
    batch, tokens, width = states.shape
    common = torch.randn(batch, 1, width, generator=generator)
    noise = (common + torch.randn(batch, tokens, width, generator=generator)) / 2**0.5
    has_caption = torch.tensor([bool(caption) for caption in captions])[:, None, None]
    return states + (noise * has_caption).to(states) * (std * states.detach().float().std()).to(states)
