"""The trained parts of VPD (Zhao et al., 2303.02153): text adapter, feature pyramid with attention maps, dense heads.

What is trained through the denoiser is small: `c + gamma * mlp(c)` of each text state. Sizes of the pyramid and the
adapter are those of the released code; the heads are plain versions of those that it takes from other projects.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffprobe.core.errors import ConfigError

Level = Float[Tensor, "batch _ _ _"]
"""A level of the pyramid; each has its own channels and size."""
GAMMA = 1e-4
"""First value of the adapter's scale in the released code."""
FPN_WIDTH, SEMANTIC_WIDTH = 256, 128
"""Channels of the pyramid, and of the Semantic FPN head (Kirillov et al., 1901.02446, section 4)."""
DECONV_WIDTH = 32
"""Channels of the upsampling layers of the depth head."""


class TextAdapter(nn.Module):
    """Text states c become c + gamma * mlp(c).

    Args:
        width: of the states.
        gamma: first value of each entry of the learned scale; 0 leaves the states as they are.
    """

    def __init__(self, width: int, *, gamma: float = GAMMA) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.gamma = nn.Parameter(torch.full((width,), gamma))

    def forward(self, states: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens width"]:
        """Return the adapted states."""
        return states + self.gamma * self.mlp(states)  # type: ignore[no-any-return]


def pyramid_taps(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the taps of the pyramid, finest first: of each up block its last layer but one, of the last its last.

    For Stable Diffusion these are the output blocks 1, 4, 7 and 11 of the released code. A layer is read after its
    attention, where it has one.

    Args:
        paths: paths of all taps.
    Raises: ConfigError for a denoiser without up blocks of at least two layers.
    """
    layers: dict[int, dict[int, str]] = {}
    for path in paths:
        parts = path.split(".")
        if len(parts) == 4 and parts[0] == "up_blocks" and parts[2] in ("resnets", "attentions"):
            block, layer = int(parts[1]), int(parts[3])
            if parts[2] == "attentions" or layer not in layers.get(block, {}):
                layers.setdefault(block, {})[layer] = path
    if len(layers) < 2 or any(len(own) < 2 for own in layers.values()):
        raise ConfigError("VPD reads the up blocks of a U-Net with at least two layers each; this denoiser has none.")
    found = [own[max(own) - 1] for _, own in sorted(layers.items())]
    last = layers[max(layers)]
    found[-1] = last[max(last)]
    return tuple(reversed(found))


def join_pyramid(
    maps: Sequence[Level], attention: Mapping[tuple[int, int], Float[Tensor, "batch tokens _ _"]]
) -> list[Level]:
    """Append to each level but the finest the attention maps of its size, where there are any.

    Args:
        maps: levels, finest first.
        attention: size -> maps.
    """
    found = [maps[0]]
    for level in maps[1:]:
        size = (level.shape[2], level.shape[3])
        found.append(torch.cat([level, attention[size].to(level)], 1) if size in attention else level)
    return found


def pyramid_channels(
    maps: Sequence[tuple[int, tuple[int, int]]], attention: Sequence[tuple[int, int]], n_tokens: int
) -> list[int]:
    """Return the channels of the joined levels.

    Args:
        maps: channels and size of each level, finest first.
        attention: sizes that have attention maps.
        n_tokens: number of text tokens.

    >>> sd = [(320, (64, 64)), (640, (32, 32)), (1280, (16, 16)), (1280, (8, 8))]
    >>> pyramid_channels(sd, [(64, 64), (32, 32), (16, 16)], 150)
    [320, 790, 1430, 1280]
    """
    first, *others = maps
    return [first[0], *(channels + (n_tokens if size in attention else 0) for channels, size in others)]


def _normalised(channels_in: int, channels: int) -> nn.Sequential:
    groups = math.gcd(32, channels)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.GroupNorm(groups, channels), nn.ReLU()
    )


class SemanticFpn(nn.Module):
    """A feature pyramid network and the head of Semantic FPN: logits at the size of the finest level.

    Each level gets a 1 x 1 convolution, the sum with the coarser one resized, and a 3 x 3 convolution (Lin et al.,
    1612.03144, section 3). Then each level is brought to the finest size in steps of two with 3 x 3 convolutions, and
    the sum is classified (1901.02446, section 3). Levels are normalised first, since channels of a denoiser differ in
    scale; all normalisation is by groups, so that a prediction does not depend on the batch.

    Args:
        channels: of the levels, finest first.
        n_outputs: classes.
        width: channels of the pyramid; the head has half.
    """

    def __init__(self, channels: Sequence[int], n_outputs: int, *, width: int = FPN_WIDTH) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(1, one) for one in channels])
        self.lateral = nn.ModuleList([nn.Conv2d(one, width, 1) for one in channels])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in channels])
        half = max(1, width // 2)
        self.scale = nn.ModuleList()
        for level in range(len(channels)):
            steps = max(1, level)
            layers = [_normalised(width if step == 0 else half, half) for step in range(steps)]
            self.scale.append(nn.ModuleList(layers))
        self.classify = nn.Conv2d(half, n_outputs, 1)

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "batch outputs height width"]:
        """Return the logits."""
        found = [
            lateral(norm(level.float())) for lateral, norm, level in zip(self.lateral, self.norms, levels, strict=True)
        ]
        for finer in range(len(found) - 2, -1, -1):
            found[finer] = found[finer] + _resized(found[finer + 1], found[finer])
        total = torch.zeros((), device=found[0].device)
        for number, (x, smooth) in enumerate(zip(found, self.smooth, strict=True)):
            x = smooth(x)
            layers: Any = self.scale[number]
            for step, layer in enumerate(layers):
                x = layer(x)
                if number:
                    x = _resized(x, found[number - 1 - step], mode="bilinear")
            total = total + x
        logits: Tensor = self.classify(total)
        return logits


def _resized(x: Tensor, like: Tensor, *, mode: str = "nearest") -> Tensor:
    size = (like.shape[2], like.shape[3])
    return interpolate(x, size=size, mode=mode, align_corners=None if mode == "nearest" else False)


class DepthHead(nn.Module):
    """Depth between 0 and a maximum: the levels fused by a convolution, three upsampling layers, a sigmoid.

    All levels are resized to the second finest one before they are fused.

    Args:
        channels: of the levels, finest first.
        max_depth: of the output, in units of the truth.
        width: channels of the fused map.
    """

    def __init__(self, channels: Sequence[int], *, max_depth: float, width: int = FPN_WIDTH) -> None:
        super().__init__()
        self.max_depth = max_depth
        self.norms = nn.ModuleList([nn.GroupNorm(1, one) for one in channels])
        self.fuse = _normalised(sum(channels), width)
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [nn.ConvTranspose2d(width if number == 0 else DECONV_WIDTH, DECONV_WIDTH, 2, stride=2), nn.ReLU()]
        self.up = nn.Sequential(*layers, nn.Conv2d(DECONV_WIDTH, 1, 3, padding=1))

    def forward(self, levels: Sequence[Level]) -> Float[Tensor, "batch 1 height width"]:
        """Return the depth."""
        normed = [norm(level.float()) for norm, level in zip(self.norms, levels, strict=True)]
        fused = self.fuse(torch.cat([_resized(one, normed[1], mode="bilinear") for one in normed], 1))
        depth: Tensor = self.max_depth * self.up(fused).sigmoid()
        return depth


def silog_loss(
    predicted: Float[Tensor, "batch height width"], truth: Float[Tensor, "batch height width"], *, weight: float = 0.5
) -> Float[Tensor, ""]:
    """Return sqrt(mean(g^2) - weight * mean(g)^2), g = log predicted - log truth, over places with truth above 0.

    Eigen et al. (1406.2283, equation 4) with the square root of the released code. 0 where no depth is known.
    """
    known: Bool[Tensor, "batch height width"] = truth > 0
    if not bool(known.any()):
        return predicted.sum() * 0
    g = predicted[known].clamp(min=1e-6).log() - truth[known].log()
    return (g.square().mean() - weight * g.mean().square()).clamp(min=1e-12).sqrt()
