"""InfoNCE: a map from features to caption embeddings that separates the caption of an image from those of a batch.

Negatives are real: the other captions of the batch for each image, and its other images for each caption (Oord et al.
2018, arXiv 1807.03748; both ways and with a learned temperature as in CLIP, Radford et al. 2021, section 2.3).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.caption.base import CaptionConfig

READS = "features"
_LARGEST = math.log(100.0)
"""Upper limit of the logarithm of the inverse temperature, as in CLIP."""


@dataclass(frozen=True, kw_only=True)
class Config(CaptionConfig):
    """Keys of `probe=caption_contrastive`, below `probe.params`; those of its steps belong to `trainer`."""

    hidden: int = 0
    """Width of a hidden layer; 0 for a linear map."""
    temperature: float = 0.07
    """Initial temperature; it is learned, down to 0.01."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 0:
            raise ConfigError(f"hidden={self.hidden} is out of range: at least 0.")
        if not 0.01 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} is out of range: at least 0.01, and finite.")


class ContrastiveMap(nn.Module):
    """The map and its temperature.

    Args:
        net: from standardised features to standardised caption embeddings.
        temperature: initial temperature.
    """

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net = net
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Return the embeddings, of any norm."""
        found: Tensor = self.net(x)
        return found

    @property
    def scale(self) -> Float[Tensor, ""]:
        """Inverse temperature, at most 100."""
        return self.log_scale.float().clamp(max=_LARGEST).exp()


def make(config: Config, d_in: int, d_out: int, *, seed: int) -> ContrastiveMap:
    """Return the untrained map: linear, or linear, ReLU, linear."""
    if not config.hidden:
        return ContrastiveMap(nn.Linear(d_in, d_out), config.temperature)
    layers = nn.Linear(d_in, config.hidden), nn.ReLU(), nn.Linear(config.hidden, d_out)
    return ContrastiveMap(nn.Sequential(*layers), config.temperature)


def contrast(
    module: ContrastiveMap,
    found: Float[Tensor, "batch d_out"],
    captions: Float[Tensor, "batch d_out"],
    same: Bool[Tensor, "batch batch"],
) -> Float[Tensor, ""]:
    """Return the InfoNCE loss of a batch.

    Args:
        module: the map, for its temperature.
        found: its outputs, of any norm.
        captions: the standardised caption embeddings, of any norm.
        same: which samples have equal captions.
    """
    return info_nce(F.normalize(found.float(), dim=1), F.normalize(captions.float(), dim=1), same, module.scale)


def info_nce(
    images: Float[Tensor, "batch d"],
    captions: Float[Tensor, "batch d"],
    same: Bool[Tensor, "batch batch"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies: the own caption among captions, and the own image among images.

    Samples with equal captions are not negatives of each other: they are left out of each other's sums.

    Args:
        images, captions: embeddings of norm 1.
        same: which samples have equal captions; True on the diagonal.
        scale: inverse temperature.
    """
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # half precision would round a logit of 100 to 0.06
        logits = (scale * images @ captions.T).masked_fill(same & ~own, float("-inf"))
        right = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
