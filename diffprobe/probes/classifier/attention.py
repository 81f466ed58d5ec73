"""Attention over the tokens of feature maps: the parts that `attentive` and `difformer` share.

The construction is that of the attention head of Mukhopadhyay et al. (arXiv 2311.17921, ECCV 2024, section 4; sizes
as in their released code, soumik-kanad/diffssl): maps are averaged to at most 16 x 16 places, normalised over channels
and places, and projected to tokens; a class token in front passes two transformer blocks with the tokens. There is no
position embedding, and queries, keys and values have no offset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.base import TrainedConfig
from diffprobe.probes.classifier.inputs import Shape


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(TrainedConfig):
    """Keys of classifiers with attention, below `probe.params`; the defaults are those of the paper."""

    width: int = 1024
    """Width of the tokens."""
    blocks: int = 2
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads of a block; they divide `width`."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP, in widths of the tokens."""
    places: int = 16
    """Largest height and width of a map; larger ones are averaged to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "blocks", "heads", "mlp_ratio", "places"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")
        if self.width % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide width={self.width}.")

    @property
    def default_learning_rate(self) -> float:
        """Step size of AdamW where none is set; the papers' code trains by SGD with 0.05."""
        return 1e-4

    @property
    def measures_distance(self) -> bool:
        """The problem is not convex: a small gradient says nothing about a minimum."""
        return False


class Tokens(nn.Module):
    """Tokens of a feature map: pooling, LayerNorm over channels and places, 1 x 1 convolution.

    Args:
        shape: channels, height and width of the maps.
        config: `width` and `places`.
    """

    def __init__(self, shape: Shape, config: AttentionConfig) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = (min(height, config.places), min(width, config.places))
        self.norm = nn.LayerNorm([channels, *self.size])
        self.project = nn.Conv2d(channels, config.width, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places token"]:
        """Return one token for each place, row by row."""
        found: Tensor = self.project(self.norm(F.adaptive_avg_pool2d(x, self.size)))
        return found.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Transformer block with normalisation before attention and MLP (GELU).

    Args:
        config: `width`, `heads`, `mlp_ratio`.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width), nn.GELU(), nn.Linear(config.mlp_ratio * width, width)
        )

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens after the block."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        found: Tensor = x + self.mlp(self.norm_mlp(x))
        return found


class AttentionPool(nn.Module):
    """A class token, zero at the start, that passes transformer blocks with all tokens.

    Args:
        config: see `AttentionConfig`.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.blocks)])

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        """Return the class token after the last block."""
        found: Tensor = self.blocks(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1))
        return found[:, 0]


class PooledMaps(nn.Module):
    """Logits from the maps of several taps and timesteps, by one attention pool.

    The tokens of all taps of a timestep are pooled together; the class tokens of the timesteps, side by side, are
    classified by a linear layer. Each tap has one `Tokens` module for all its timesteps.

    Args:
        groups: for each timestep the cells that are pooled together, each with the name of its tap.
        shapes: shape of the maps of each tap.
        n_classes: number of classes.
        config: see `AttentionConfig`.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, str]],
        shapes: Mapping[str, Shape],
        n_classes: int,
        config: AttentionConfig,
    ) -> None:
        super().__init__()
        self.groups, self._index = [dict(group) for group in groups], {tap: i for i, tap in enumerate(shapes)}
        self.tokens = nn.ModuleList([Tokens(shape, config) for shape in shapes.values()])
        self.pool = AttentionPool(config)
        self.linear = nn.Linear(config.width * len(self.groups), n_classes)

    def forward(self, maps: Mapping[str, Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised maps, by cell."""
        pooled = []
        for group in self.groups:
            tokens = [self.tokens[self._index[tap]](maps[cell]) for cell, tap in group.items()]
            pooled.append(self.pool(torch.cat(tokens, dim=1)))
        logits: Tensor = self.linear(torch.cat(pooled, dim=1))
        return logits
