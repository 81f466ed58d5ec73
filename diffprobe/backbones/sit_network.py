"""The transformer of SiT (Ma et al., 2401.08740), in which REPA (Yu et al., 2410.06940) was trained too.

Research checkpoints are not pipelines of diffusers, so the network is built here, with the names of their tensors.
Blocks are those of DiT (Peebles and Xie, 2212.09748, figure 3); REPA adds projectors of the tokens after one block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

Convention = Literal["sit", "repa"]
"""Direction of time. SiT: 0 is noise, 1 the image, and the output is image - noise. REPA: 1 is noise, and the output
is noise - image. Sources: `transport/transport.py` of SiT's code; `loss.py` and `samplers.py` of REPA's."""

_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, blocks and heads of the published sizes (Ma et al., table 1, with those of DiT)."""
MODELS = {f"SiT-{size}/{patch}": (*numbers, patch) for size, numbers in _SIZES.items() for patch in (2, 4, 8)}
"""Published models: width, blocks, heads, and latent places on a side of one token."""
_FREQUENCIES = 256
"""Numbers that stand for a time."""
_PERIOD = 10_000
"""Longest period of the embeddings of times and positions."""


@dataclass(frozen=True, kw_only=True)
class SitConfig:
    """Settings of the network, the keys of its config.json besides `model`, a name in `MODELS` for four of them."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    input_size: int
    """Side of the latents."""
    convention: Convention
    in_channels: int = 4
    num_classes: int = 1000
    learn_sigma: bool = False
    """Whether as many channels again are output, of a variance that is not used: true for SiT's own checkpoints."""
    class_dropout: bool = True
    """Whether there is a null class, the one after the last."""
    qk_norm: bool = False
    encoder_depth: int = 8
    """Block after which REPA's projectors read the tokens."""
    projector_dim: int = 2048
    z_dims: tuple[int, ...] = ()
    """Widths of the encoders that REPA was aligned with, one projector each."""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "SitConfig":
        """Make one from the keys of a config.json. Raises: WeightsMismatch for keys or values that it cannot have."""
        found = dict(settings)
        name = found.pop("model", None)
        if name is not None:
            if name not in MODELS:
                raise WeightsMismatch(f"model is {str(name)[:80]}.", f"allowed: {', '.join(MODELS)}")
            found |= dict(zip(("hidden_size", "depth", "num_heads", "patch_size"), MODELS[name], strict=True))
        names = [field.name for field in fields(cls)]
        needed = [field.name for field in fields(cls)[:6]]
        unknown, missing = sorted(set(found) - set(names)), [key for key in needed if key not in found]
        if unknown or missing:
            raise WeightsMismatch(
                f"settings of a SiT: unknown {', '.join(unknown) or 'none'}; missing {', '.join(missing) or 'none'}.",
                f"allowed: model, {', '.join(names)}",
            )
        if found["convention"] not in ("sit", "repa"):
            raise WeightsMismatch(f"convention is {str(found['convention'])[:80]}.", "allowed: sit, repa")
        found["z_dims"] = tuple(found.get("z_dims", ()))
        config = cls(**found)
        _check_numbers(config)
        return config


def _check_numbers(config: SitConfig) -> None:
    """Check that a network can be built. Raises: WeightsMismatch."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in ("int", int) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise WeightsMismatch(f"{field.name} is {str(value)[:80]}.", "allowed: a whole number of at least 1")
    if config.hidden_size % (4 * config.num_heads) or config.input_size % config.patch_size:
        raise WeightsMismatch(
            f"hidden_size {config.hidden_size} with {config.num_heads} heads, or input_size {config.input_size} with "
            f"patch_size {config.patch_size}, has no whole parts.",
            "allowed: hidden_size a multiple of 4 x num_heads, input_size a multiple of patch_size",
        )


def position_table(width: int, side: int) -> Float[Tensor, "1 places width"]:
    """Return sines and cosines of the column, then of the row, of each place (He et al., 2111.06377, code of MAE)."""
    n = width // 4
    angles = torch.arange(side, dtype=torch.float64)[:, None] * _PERIOD ** (-torch.arange(n, dtype=torch.float64) / n)
    one = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    columns, rows = one[None].expand(side, -1, -1), one[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side**2, width)


class _Times(nn.Module):
    """Embedding of a time in 0..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Float[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        half = _FREQUENCIES // 2
        angles = times.float()[:, None] * _PERIOD ** (-torch.arange(half, device=times.device).float() / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        found: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return found


class _Labels(nn.Module):
    """Embedding of a class."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(n, width)

    def forward(self, labels: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        found: Tensor = self.embedding_table(labels)
        return found


class _Patches(nn.Module):
    """Tokens of latents."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: FeatureMap) -> Float[Tensor, "rows tokens width"]:
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention of tokens [rows, tokens, width], with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    """Two linear layers, over tokens [rows, tokens, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
    """A block of DiT: shifts, scales and gates follow from the sum of time and class, [rows, width].

    Blocks are compiled, and torch.compile takes no check of shapes: their tensors are annotated without.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = _Attention(width, heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.adaLN_modulation(given).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(_modulated(self.norm1(x), shift, scale))
        return x + gate_2[:, None] * self.mlp(_modulated(self.norm2(x), shift_2, scale_2))


class _Final(nn.Module):
    """From tokens to the places of their patches."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, x: Float[Tensor, "rows tokens width"], given: Float[Tensor, "rows width"]
    ) -> Float[Tensor, "rows tokens outputs"]:
        shift, scale = self.adaLN_modulation(given).chunk(2, dim=1)
        return self.linear(_modulated(self.norm_final(x), shift, scale))  # type: ignore[no-any-return]


def _projector(width: int, inner: int, outputs: int) -> nn.Sequential:
    layers: Sequence[nn.Module] = (
        nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, outputs),
    )  # fmt: skip
    return nn.Sequential(*layers)


class SiT(nn.Module):
    """A transformer over latents, conditioned on a time and a class.

    Args:
        config: its settings.
    """

    def __init__(self, config: SitConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.x_embedder = _Patches(config.in_channels, width, patch)
        self.t_embedder = _Times(width)
        self.y_embedder = _Labels(config.num_classes + config.class_dropout, width)
        self.pos_embed = nn.Parameter(position_table(width, config.input_size // patch), requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, config.num_heads, config.qk_norm) for _ in range(config.depth))
        self.projectors = nn.ModuleList(_projector(width, config.projector_dim, n) for n in config.z_dims)
        channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.final_layer = _Final(width, patch**2 * channels)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> "SiT":
        """Build it from the keys of a config.json. Raises: WeightsMismatch."""
        return cls(SitConfig.read(settings))

    def forward(
        self, x: FeatureMap, times: Float[Tensor, " rows"], labels: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows outputs height width"]:
        """Run it on noisy latents.

        Args:
            times: in 0..1, in the direction of the checkpoint.
            labels: class ids; the one after the last is the null class.
        """
        patch, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        tokens = self.x_embedder(x) + self.pos_embed
        given = self.t_embedder(times) + self.y_embedder(labels)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, given)
            if i + 1 == self.config.encoder_depth:
                for projector in self.projectors:
                    projector(tokens)  # read by its taps alone
        places = self.final_layer(tokens, given).unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        found: Tensor = places.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return found
