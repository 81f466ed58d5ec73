"""The U-Net of EDM2 (Karras et al., 2312.02696, configuration G: appendix B, figure 21).

Its checkpoints are not pipelines of diffusers, so the network is built here, with the names of their tensors. All its
layers keep the magnitude of what they are given: weights are normalised in every pass, there are no biases and no
normalisations with parameters, and sums and activations are scaled by constants.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, scaled_dot_product_attention, silu

from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
MODELS = {
    **{f"edm2-img512-{size}": (64, 4, 1000, width) for size, width in _WIDTHS.items()},
    **{f"edm2-img64-{size}": (64, 3, 1000, width) for size, width in _WIDTHS.items() if size not in ("xxs", "xxl")},
}
"""Published models: side and channels of their input, classes, and width of the first level (presets of their code)."""
_SILU = 0.596
"""Magnitude of silu(x) for x of unit variance (equation 81)."""
_EPS = 1e-4
_MOST_LEVELS = 12


@dataclass(frozen=True, kw_only=True)
class Edm2Config:
    """Settings of the network, the keys of its config.json besides `model`, a name in `MODELS` for the first four."""

    img_resolution: int
    """Side of what is denoised, in latent places or pixels."""
    img_channels: int
    """4 for latents, 3 for pixels."""
    label_dim: int
    """Number of classes; 0 for an unconditional network."""
    model_channels: int
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level, in `model_channels`; between two levels a side is halved."""
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    """Sides of the maps with self-attention."""
    channels_per_head: int = 64
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0
    """Magnitude at which the output of a block is clipped."""
    sigma_data: float = 0.5
    """Standard deviation of the training data."""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Edm2Config":
        """Make one from the keys of a config.json. Raises: WeightsMismatch for keys or values that it cannot have."""
        found = dict(settings)
        names = [field.name for field in fields(cls)]
        name = found.pop("model", None)
        if name is not None:
            if name not in MODELS:
                raise WeightsMismatch(f"model is {str(name)[:80]}.", f"allowed: {', '.join(MODELS)}")
            found = dict(zip(names, MODELS[name], strict=False)) | found
        unknown, missing = sorted(set(found) - set(names)), [key for key in names[:4] if key not in found]
        if unknown or missing:
            raise WeightsMismatch(
                f"settings of an EDM2: unknown {', '.join(unknown) or 'none'}; missing {', '.join(missing) or 'none'}.",
                f"allowed: model, {', '.join(names)}",
            )
        for field in fields(cls):
            if field.name in found:
                found[field.name] = checked_setting(field.name, str(field.type), found[field.name])
        config = cls(**found)
        require_levels(config.img_resolution, config.channel_mult)
        return config


def require_levels(side: int, channel_mult: tuple[int, ...]) -> None:
    """Check that a side can be halved between the levels of a U-Net. Raises: WeightsMismatch."""
    if side % 2 ** (len(channel_mult) - 1) or len(channel_mult) > _MOST_LEVELS:
        raise WeightsMismatch(
            f"img_resolution {side} with {len(channel_mult)} levels in channel_mult.",
            f"allowed: at most {_MOST_LEVELS} levels, and a side that can be halved between them",
        )


def checked_setting(name: str, kind: str, value: object) -> Any:
    """Return the value of a setting, lists as tuples.

    Args:
        name: its name; `label_dim` may be 0.
        kind: its annotation: whole numbers, tuples of them, or numbers.
        value: as the config has it.
    Raises: WeightsMismatch.
    """
    least = 0 if name == "label_dim" else 1
    numbers = value if isinstance(value, (list, tuple)) and "tuple" in kind else [value]
    whole = all(isinstance(x, int) and not isinstance(x, bool) and x >= least for x in numbers) and len(numbers) > 0
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    if not (real if "float" in kind else whole and ("tuple" in kind) == isinstance(value, (list, tuple))):
        allowed = "a number above 0" if "float" in kind else f"whole numbers of at least {least}"
        raise WeightsMismatch(f"{name} is {str(value)[:80]}.", f"allowed: {allowed}")
    return tuple(numbers) if "tuple" in kind else value


def normalized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return `x` divided by its root mean square over some dimensions (equation 66)."""
    n = math.prod(x.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32) / math.sqrt(n)
    return x / (norm + _EPS).to(x.dtype)


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return (1 - share) a + share b, scaled to keep the magnitude (equation 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def _activated(x: Tensor) -> Tensor:
    return silu(x) / _SILU


def _joined(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Concatenate channels so that each of the two makes its share of the magnitude (equation 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - share, share)
    return torch.cat([a * (scale * (1 - share) / math.sqrt(n_a)), b * (scale * share / math.sqrt(n_b))], dim=1)


class _Fourier(nn.Module):
    """Cosines of a number, of frequencies and phases that were drawn before the training (equation 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, x: Float[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        return (x.float()[:, None] * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)


class _Layer(nn.Module):
    """A linear layer [rows, inputs] (`kernel` 0) or a convolution of maps; weights are normalised (equation 47)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.out_channels = outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *((kernel, kernel) if kernel else ())))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = self.weight.float()
        weight = normalized(weight, tuple(range(1, weight.ndim))) * (gain / math.sqrt(weight[0].numel()))
        weight = weight.to(x.dtype)
        return x @ weight.T if weight.ndim == 2 else conv2d(x, weight, padding=weight.shape[-1] // 2)


class _Block(nn.Module):
    """A block of the encoder or the decoder (figure 21), over maps [rows, inputs, height, width].

    `heads` is 0 without self-attention. Blocks are compiled, and torch.compile takes no check of shapes: their tensors
    are annotated without.

    Args:
        inputs, outputs: channels.
        given: width of the embedding of noise level and class.
        decodes: whether it is of the decoder.
        resample: `down` or `up`, by a factor of 2; None keeps the side.
    """

    def __init__(
        self, config: Edm2Config, inputs: int, outputs: int, given: int, *, decodes: bool, resample: str | None = None,
        attends: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_channels, self._decodes, self._resample = outputs, decodes, resample
        self._res, self._attn, self._clip = config.res_balance, config.attn_balance, config.clip_act
        self.heads = outputs // config.channels_per_head if attends else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = _Layer(inputs if decodes else outputs, outputs, 3)
        self.emb_linear = _Layer(given, outputs)
        self.conv_res1 = _Layer(outputs, outputs, 3)
        self.conv_skip = _Layer(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = _Layer(outputs, 3 * outputs, 1) if self.heads else None
        self.attn_proj = _Layer(outputs, outputs, 1) if self.heads else None

    def forward(self, x: Tensor, *, given: Tensor) -> Tensor:
        if self._resample == "down":
            x = avg_pool2d(x, 2)
        elif self._resample == "up":
            x = interpolate(x, scale_factor=2, mode="nearest")
        if not self._decodes:
            x = normalized(x if self.conv_skip is None else self.conv_skip(x), (1,))
        y = self.conv_res0(_activated(x))
        scale = self.emb_linear(given, self.emb_gain.float()) + 1
        y = self.conv_res1(_activated(y * scale[:, :, None, None].to(y.dtype)))
        if self._decodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mixed(x, y, self._res)
        if self.attn_qkv is not None and self.attn_proj is not None:
            # channels of the projection count heads first, then those of a head, then query, key, value
            parts = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))
            q, k, v = (part.transpose(2, 3) for part in normalized(parts, (2,)).unbind(3))
            y = scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
            x = mixed(x, self.attn_proj(y.unflatten(2, x.shape[2:])), self._attn)
        return x.clamp(-self._clip, self._clip)


class Edm2UNet(nn.Module):
    """The network inside the preconditioning of EDM: input and output have unit variance.

    Args:
        config: its settings.
    """

    def __init__(self, config: Edm2Config) -> None:
        super().__init__()
        self.config = config
        widths = [config.model_channels * times for times in config.channel_mult]
        given, side = max(widths), config.img_resolution
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = _Fourier(widths[0])
        self.emb_noise = _Layer(widths[0], given)
        self.emb_label = _Layer(config.label_dim, given) if config.label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, skips = widths[0], []
        for level, outputs in enumerate(widths):
            place = f"{side >> level}x{side >> level}"
            if level == 0:  # one channel more, of ones, in place of biases
                self.enc[f"{place}_conv"] = _Layer(config.img_channels + 1, outputs, 3)
            else:
                self.enc[f"{place}_down"] = _Block(config, width, width, given, decodes=False, resample="down")
            skips.append(width)
            for i in range(config.num_blocks):
                attends = side >> level in config.attn_resolutions
                block = _Block(config, width, outputs, given, decodes=False, attends=attends)
                self.enc[f"{place}_block{i}"] = block
                width = outputs
                skips.append(width)
        for level, outputs in reversed(list(enumerate(widths))):
            place = f"{side >> level}x{side >> level}"
            if level == len(widths) - 1:
                self.dec[f"{place}_in0"] = _Block(config, width, width, given, decodes=True, attends=True)
                self.dec[f"{place}_in1"] = _Block(config, width, width, given, decodes=True)
            else:
                self.dec[f"{place}_up"] = _Block(config, width, width, given, decodes=True, resample="up")
            for i in range(config.num_blocks + 1):
                attends = side >> level in config.attn_resolutions
                block = _Block(config, width + skips.pop(), outputs, given, decodes=True, attends=attends)
                self.dec[f"{place}_block{i}"] = block
                width = outputs
        self.out_conv = _Layer(width, config.img_channels, 3)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> "Edm2UNet":
        """Build it from the keys of a config.json. Raises: WeightsMismatch."""
        return cls(Edm2Config.read(settings))

    def forward(
        self, x: FeatureMap, noise: Float[Tensor, " rows"], labels: Int[Tensor, " rows"] | None = None
    ) -> FeatureMap:
        """Run it on noisy images or latents of unit variance.

        Args:
            noise: a quarter of the logarithm of the noise level sigma.
            labels: class ids; None only for an unconditional network.
        """
        given = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and labels is not None:
            n = self.config.label_dim
            classes = (labels[:, None] == torch.arange(n, device=labels.device)).to(given.dtype) * math.sqrt(n)
            given = mixed(given, self.emb_label(classes), self.config.label_balance)
        given = _activated(given)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else block(x, given=given)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = _joined(x, skips.pop(), self.config.concat_balance)
            x = block(x, given=given)
        found: Tensor = self.out_conv(x, self.out_gain.float())
        return found
