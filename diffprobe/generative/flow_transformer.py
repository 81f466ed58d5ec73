"""The networks of a small flow model with the layout of Stable Diffusion 3: a transformer and two CLIP text encoders.

Training is in `flow_denoiser.py`.

Source: Esser et al., 2403.03206, section 4 (MM-DiT) and 5.3.2 (normalised queries and keys).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from diffprobe.core.errors import ConfigError
from diffprobe.generative.architectures import clip_text_config

EMPTY_T5_TOKENS = 256
"""Zero tokens that the pipeline of Stable Diffusion 3 appends to the text where it has no T5."""


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Shape of the transformer; that of both text encoders is in `model`."""

    layers: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 32
    """Width of a head, a multiple of 4; tokens are heads * head_width wide."""
    patch_size: int = 2
    """Side of the patch of latents that is one token."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_width", "patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"transformer.{name}={getattr(self, name)} is out of range: at least 1.")
        if self.head_width % 4:
            raise ConfigError(
                f"transformer.head_width={self.head_width} is not a multiple of 4.",
                "positions are sines and cosines of rows and columns",
            )

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.heads * self.head_width


def make_transformer(
    shape: TransformerShape, *, latent_channels: int, latent_side: int, text_width: int, seed: int
) -> Any:
    """Build a diffusers SD3Transformer2DModel with random weights; the global random state is unchanged.

    The gates of its blocks start at 0, so that each starts as the identity (Peebles and Xie, 2212.09748, section 3.2).

    Args:
        shape: shape of the transformer.
        latent_channels: channels of a vae_latent.
        latent_side: height and width of a vae_latent.
        text_width: width of each of the two text encoders, and of their pooled embeddings.
        seed: seed of all weights.
    Raises: ConfigError for patches that do not tile a latent.
    """
    from diffusers import SD3Transformer2DModel

    if latent_side % shape.patch_size:
        raise ConfigError(
            f"transformer.patch_size={shape.patch_size} does not divide the {latent_side} positions of a latent's side."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = SD3Transformer2DModel(
            sample_size=latent_side,
            patch_size=shape.patch_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_layers=shape.layers,
            attention_head_dim=shape.head_width,
            num_attention_heads=shape.heads,
            joint_attention_dim=2 * text_width,
            caption_projection_dim=shape.width,
            pooled_projection_dim=2 * text_width,
            pos_embed_max_size=latent_side // shape.patch_size,
            qk_norm="rms_norm",
        )
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    return transformer


def make_projected_text_encoder(
    *, width: int, layers: int, heads: int, max_tokens: int, tokenizer: Any, seed: int
) -> Any:
    """Build a transformers CLIPTextModelWithProjection with random weights; the global random state is unchanged.

    Args:
        width: width of the states, and of the pooled embedding.
        layers: transformer layers; the denoiser reads the states before the last one.
        heads: attention heads.
        max_tokens: maximum caption length in tokens.
        tokenizer: tokenizer whose vocabulary is embedded.
        seed: seed of all weights.
    """
    from transformers import CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModelWithProjection(
            clip_text_config(width=width, layers=layers, heads=heads, max_tokens=max_tokens, tokenizer=tokenizer)
        )


def append_zero_token(states: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token+1 width"]:
    """Append one token of zeros, which stands for all tokens of an absent T5 inside `RepeatedLastToken`."""
    return torch.cat([states, states.new_zeros(len(states), 1, states.shape[2])], dim=1)


class RepeatedLastToken(TorchFunctionMode):
    """Inside it, the last key of every attention counts as n equal keys.

    The tokens of an absent T5 are equal before the first block, have no positions, and so stay equal. A softmax over n
    equal keys is one over a single key whose logit is larger by log n: the network computes the same with a fraction of
    its tokens.

    Args:
        n: number of keys that the last one stands for.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self._more = math.log(n)

    def __torch_function__(
        self, function: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function; an attention with the larger logit, added in float32."""
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        query, key, value = (given[name] for name in ("query", "key", "value"))
        logits = (query @ key.mT).float() * query.shape[-1] ** -0.5
        more = torch.zeros(key.shape[-2], device=key.device)
        more[-1] = self._more
        return (logits + more).softmax(-1).to(value.dtype) @ value
