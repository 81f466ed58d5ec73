"""Noise on what a text encoder says of a caption, so that a denoiser learns one answer for captions of like meaning."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def blur(
    states: Float[Tensor, "batch token width"], captions: Sequence[str], *, share: float, generator: torch.Generator
) -> Float[Tensor, "batch token width"]:
    """Add normal noise: half of its variance moves all tokens of a caption alike, half each by itself.

    A small data set has one drawing a name. Without noise every name is a point with an answer of its own, and between
    two of them anything may happen; with it, names share answers over a distance that `share` sets.

    Args:
        states: last hidden states of a text encoder.
        captions: of each row; the empty one is left as it is, it must stay what guidance knows.
        share: standard deviation of the noise, as a share of that of the states; 0 adds none.
        generator: source of the noise, on the CPU.
    """
    if share == 0:
        return states
    batch, tokens, width = states.shape
    joint = torch.randn(batch, 1, width, generator=generator)
    noise = (joint + torch.randn(batch, tokens, width, generator=generator)) / 2**0.5
    has_caption = torch.tensor([bool(caption) for caption in captions])[:, None, None]
    return states + (noise * has_caption).to(states) * (share * states.detach().float().std()).to(states)
