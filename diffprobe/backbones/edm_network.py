"""The U-Nets of EDM (Karras et al., 2206.00364): DDPM++ (Song et al., 2011.13456), ADM (Dhariwal et al., 2105.05233).

Their checkpoints are not pipelines of diffusers, so the networks are built here, with the names of their tensors. What
they share is the order of levels and blocks; DDPM++ adds the embedding of noise level and class to a block and has one
attention head, ADM scales and shifts by it and has heads of a fixed width. Facts are those of EDM's code, NVlabs/edm at
0a2ff34: `training/networks.py` for the networks, `train.py` for the settings of the published ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention, silu

from diffprobe.backbones.edm2_network import checked_setting, require_levels
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

Architecture = Literal["ddpmpp", "adm"]
_DDPMPP = {"architecture": "ddpmpp", "model_channels": 128, "num_blocks": 4, "attn_resolutions": (16,)}
_ADM = {"architecture": "adm", "model_channels": 192, "num_blocks": 3, "attn_resolutions": (32, 16, 8)}
MODELS: dict[str, dict[str, Any]] = {
    "edm-cifar10-32x32-uncond-vp": {"img_resolution": 32, "label_dim": 0, "channel_mult": (2, 2, 2), **_DDPMPP},
    "edm-cifar10-32x32-cond-vp": {"img_resolution": 32, "label_dim": 10, "channel_mult": (2, 2, 2), **_DDPMPP},
    "edm-ffhq-64x64-uncond-vp": {"img_resolution": 64, "label_dim": 0, "channel_mult": (1, 2, 2, 2), **_DDPMPP},
    "edm-afhqv2-64x64-uncond-vp": {"img_resolution": 64, "label_dim": 0, "channel_mult": (1, 2, 2, 2), **_DDPMPP},
    "edm-imagenet-64x64-cond-adm": {"img_resolution": 64, "label_dim": 1000, "channel_mult": (1, 2, 3, 4), **_ADM},
}
"""Published models of both architectures, and their settings. Those named `-ve` are NCSN++, which is not built here."""
_PERIOD = 10_000
"""Longest period of the embedding of noise levels."""
_GIVEN = 4
"""Width of the embedding of noise level and class, in `model_channels`."""


@dataclass(frozen=True, kw_only=True)
class EdmConfig:
    """Settings of the network, the keys of its config.json besides `model`, a name in `MODELS` for all of them."""

    architecture: Architecture
    img_resolution: int
    """Side of the images in pixels."""
    label_dim: int
    """Number of classes; 0 for an unconditional network."""
    model_channels: int
    channel_mult: tuple[int, ...]
    """Width of each level, in `model_channels`; between two levels a side is halved."""
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    """Sides of the maps with self-attention."""
    channels_per_head: int = 64
    """Width of an attention head of `adm`; `ddpmpp` has one head."""
    img_channels: int = 3
    sigma_data: float = 0.5
    """Standard deviation of the training data."""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "EdmConfig":
        """Make one from the keys of a config.json. Raises: WeightsMismatch for keys or values that it cannot have."""
        found = dict(settings)
        name = found.pop("model", None)
        if name is not None:
            if name not in MODELS:
                raise WeightsMismatch(f"model is {str(name)[:80]}.", f"allowed: {', '.join(MODELS)}")
            found = MODELS[name] | found
        names = [field.name for field in fields(cls)]
        unknown, missing = sorted(set(found) - set(names)), [key for key in names[:7] if key not in found]
        if unknown or missing:
            raise WeightsMismatch(
                f"settings of an EDM: unknown {', '.join(unknown) or 'none'}; missing {', '.join(missing) or 'none'}.",
                f"allowed: model, {', '.join(names)}",
            )
        if found["architecture"] not in ("ddpmpp", "adm"):
            raise WeightsMismatch(f"architecture is {str(found['architecture'])[:80]}.", "allowed: ddpmpp, adm")
        for field in fields(cls)[1:]:
            if field.name in found:
                found[field.name] = checked_setting(field.name, str(field.type), found[field.name])
        config = cls(**found)
        require_levels(config.img_resolution, config.channel_mult)
        return config


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """Make a normalisation over at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


def _resampled(x: Tensor, how: str | None) -> Tensor:
    """Halve or double a side by the box filter; None keeps it."""
    if how is None:
        return x
    return avg_pool2d(x, 2) if how == "down" else interpolate(x, scale_factor=2, mode="nearest")


class _Block(nn.Module):
    """A residual block, with self-attention behind it or without, over maps [rows, inputs, height, width].

    `heads` is 0 without self-attention. Blocks are compiled, and torch.compile takes no check of shapes: their tensors
    are annotated without.

    Args:
        inputs, outputs: channels.
        resample: `down` or `up`, by a factor of 2; None keeps the side.
    """

    def __init__(
        self, config: EdmConfig, inputs: int, outputs: int, *, resample: str | None = None, attends: bool = False
    ) -> None:
        super().__init__()
        self.out_channels, self._resample, self._adm = outputs, resample, config.architecture == "adm"
        eps, heads = (1e-5, outputs // config.channels_per_head) if self._adm else (1e-6, 1)
        self.heads = heads if attends else 0
        self._scale = 1.0 if self._adm else math.sqrt(0.5)
        self.norm0 = _norm(inputs, eps)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(_GIVEN * config.model_channels, outputs * (2 if self._adm else 1))
        self.norm1 = _norm(outputs, eps)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        projects = inputs != outputs or (resample is not None and not self._adm)
        self.skip = nn.Conv2d(inputs, outputs, 1) if projects else None
        self.norm2 = _norm(outputs, eps) if self.heads else None
        self.qkv = nn.Conv2d(outputs, 3 * outputs, 1) if self.heads else None
        self.proj = nn.Conv2d(outputs, outputs, 1) if self.heads else None

    def forward(self, x: Tensor, *, given: Tensor) -> Tensor:
        y = self.conv0(_resampled(silu(self.norm0(x)), self._resample))
        more = self.affine(given)[:, :, None, None]
        if self._adm:
            scale, shift = more.chunk(2, dim=1)
            y = self.norm1(y) * (1 + scale) + shift
        else:
            y = self.norm1(y + more)
        x = _resampled(x, self._resample)
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(silu(y))) * self._scale
        if self.norm2 is not None and self.qkv is not None and self.proj is not None:
            # channels of the projection count heads first, then those of a head, then query, key, value
            parts = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
            q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
            y = scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
            x = (x + self.proj(y.unflatten(2, x.shape[2:]))) * self._scale
        return x


class EdmUNet(nn.Module):
    """The network inside the preconditioning of EDM: input and output have unit variance.

    Args:
        config: its settings.
    """

    def __init__(self, config: EdmConfig) -> None:
        super().__init__()
        self.config = config
        adm, width = config.architecture == "adm", config.model_channels
        given, side = _GIVEN * width, config.img_resolution
        self.map_layer0, self.map_layer1 = nn.Linear(width, given), nn.Linear(given, given)
        self.map_label = None
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, given if adm else width, bias=not adm)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        widths = [config.model_channels * times for times in config.channel_mult]
        width, skips = widths[0] if adm else width, []
        for level, outputs in enumerate(widths):
            place = f"{side >> level}x{side >> level}"
            if level == 0:
                self.enc[f"{place}_conv"] = nn.Conv2d(config.img_channels, width, 3, padding=1)
            else:
                self.enc[f"{place}_down"] = _Block(config, width, width, resample="down")
            skips.append(width)
            for i in range(config.num_blocks):
                attends = side >> level in config.attn_resolutions
                self.enc[f"{place}_block{i}"] = _Block(config, width, outputs, attends=attends)
                width = outputs
                skips.append(width)
        for level, outputs in reversed(list(enumerate(widths))):
            place = f"{side >> level}x{side >> level}"
            if level == len(widths) - 1:
                self.dec[f"{place}_in0"] = _Block(config, width, width, attends=True)
                self.dec[f"{place}_in1"] = _Block(config, width, width)
            else:
                self.dec[f"{place}_up"] = _Block(config, width, width, resample="up")
            for i in range(config.num_blocks + 1):  # in the decoder of DDPM++ only the last one of a level attends
                attends = side >> level in config.attn_resolutions and (adm or i == config.num_blocks)
                self.dec[f"{place}_block{i}"] = _Block(config, width + skips.pop(), outputs, attends=attends)
                width = outputs
        last = nn.Conv2d(width, config.img_channels, 3, padding=1)
        if adm:
            self.out_norm, self.out_conv = _norm(width, 1e-5), last
        else:
            self.dec[f"{side}x{side}_aux_norm"], self.dec[f"{side}x{side}_aux_conv"] = _norm(width, 1e-6), last

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> "EdmUNet":
        """Build it from the keys of a config.json. Raises: WeightsMismatch."""
        return cls(EdmConfig.read(settings))

    @property
    def blocks(self) -> list[str]:
        """Paths of the blocks, in the order in which they run."""
        return [
            f"{name}.{key}"
            for name, part in (("enc", self.enc), ("dec", self.dec))
            for key in part
            if not key.endswith("_conv") and "_aux_" not in key
        ]

    def _given(
        self, noise: Float[Tensor, " rows"], labels: Int[Tensor, " rows"] | None
    ) -> Float[Tensor, "rows embedding"]:
        """Embed the noise level and the class."""
        adm, n = self.config.architecture == "adm", self.config.model_channels // 2
        steps = torch.arange(n, device=noise.device).float() / (n if adm else n - 1)
        angles = noise.float()[:, None] * _PERIOD**-steps
        waves = (angles.cos(), angles.sin()) if adm else (angles.sin(), angles.cos())
        given = torch.cat(waves, dim=1).to(self.map_layer0.weight.dtype)
        label = None
        if self.map_label is not None and labels is not None:
            classes = labels[:, None] == torch.arange(self.config.label_dim, device=labels.device)
            size = 1.0 if adm else math.sqrt(self.config.label_dim)
            label = self.map_label(classes.to(given.dtype) * size)
        if adm:
            given = self.map_layer1(silu(self.map_layer0(given)))
            return silu(given if label is None else given + label)
        given = given if label is None else given + label
        return silu(self.map_layer1(silu(self.map_layer0(given))))

    def forward(
        self, x: FeatureMap, noise: Float[Tensor, " rows"], labels: Int[Tensor, " rows"] | None = None
    ) -> FeatureMap:
        """Run it on noisy images of unit variance.

        Args:
            noise: a quarter of the logarithm of the noise level sigma.
            labels: class ids; None only for an unconditional network.
        """
        given = self._given(noise, labels)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else block(x, given=given)
            skips.append(x)
        for name, block in self.dec.items():
            if "_aux_" in name:  # the last two, of DDPM++
                x = silu(block(x)) if name.endswith("_norm") else block(x)
                continue
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, given=given)
        if self.config.architecture == "adm":
            x = self.out_conv(silu(self.out_norm(x)))
        return x
