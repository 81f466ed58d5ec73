"""No model: the image itself, reduced to 16 x 16. The raw-pixel control, with the interface of a model.

There is one tap, `pixels`, of 768 channels and one place (so every pooling gives the same 768 numbers), and one
timestep, 0, without noise.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffprobe.backbones.base import (
    Backbone,
    BackboneSpec,
    Checkpoint,
    Condition,
    ConditionInput,
    LoadOptions,
    Prediction,
)
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import clean_schedule
from diffprobe.core.errors import ConfigError
from diffprobe.core.shapes import FeatureMap, Images

SIDE = 16
"""Side of the reduced image."""


def reduced_pixels(x: FeatureMap) -> Float[Tensor, "batch values 1 1"]:
    """Reduce images by area to 16 x 16 and put all values on the channel axis: [batch, 768, 1, 1]."""
    return interpolate(x, size=(SIDE, SIDE), mode="area").reshape(x.shape[0], -1, 1, 1)


class _Shrink(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return reduced_pixels(x)


class _Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixels = _Shrink()

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels(x)


def matches(index: dict[str, Any]) -> bool:
    """Return whether the raw pixels are requested."""
    return index.get("_class_name") == "pixels"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe the one tap. Raises: ConfigError below 16 px."""
    side = resolution or 64
    if side < SIDE:
        raise ConfigError(f"resolution {side} is below the {SIDE} px that images are reduced to.")
    return BackboneSpec(
        family="pixels",
        name=checkpoint.name,
        denoiser=_Pixels(),
        run=lambda network: network(torch.empty(1, 3, side, side, device="meta")),
        signature=f"pixels-{side}",
        resolution=side,
        latent_shape=(3, side, side),
        layout=OutputLayout(size=(side, side)),
        schedule=clean_schedule(),
        prediction="sample",
        conditions=("empty",),
        blocks=("pixels",),
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Return the backbone without weights. Raises: ConfigError if random weights are requested."""
    if options.random_seed is not None:
        raise ConfigError(
            "backbone 'pixels' has no weights, so random_weights does not apply.", fix="backbone.random_weights=false"
        )
    return RawPixels(spec.denoiser)


class RawPixels(Backbone):
    """The image itself."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser, self.prediction = denoiser, "sample"

    def encode_images(self, images: Images) -> FeatureMap:
        """Return the images as they are."""
        return images.float()

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Return no condition."""
        return {}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Reduce the images. The prediction of the clean image is the image itself, which has no noise."""
        self.denoiser(x_t)
        return Prediction(x_t, self.prediction)

    def components(self) -> dict[str, nn.Module]:
        """Name the (parameterless) network."""
        return {"denoiser": self.denoiser}


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Return no digest: there are no parts."""
    return {}


def tiny(path: Path | str) -> Path:
    """Create an empty folder: this family is named `pixels`, not found on disk."""
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)
