"""Diff-C: the convolutional classifier of Revelio (Kim et al., arXiv 2411.16725, ICCV 2025) on one map.

`form=released` follows the released code (revelio-diffusion/revelio, diffc_image_classification/models.py): BatchNorm
without parameters; a 3 x 3 convolution with stride 1 to 1024 channels and three with stride 2, each with BatchNorm,
ReLU and spatial dropout; the mean over places; dropout; a linear layer. With 1280 channels and 37 classes it has
40.16 M trained parameters, as a reproduction of the paper logged. Dropout is 0 as in the script that the authors ran
(0.5 is the default of their class).

`form=described` is second hand: a summary of the paper speaks of four convolutions that make the map smaller step by
step, so all four have stride 2. Nothing else differs, so the parameters are as many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.base import TrainedConfig
from diffprobe.probes.classifier.batch_norm import JointBatchNorm
from diffprobe.probes.classifier.inputs import Shape, maps_of

READS = "map"


@dataclass(frozen=True, kw_only=True)
class Config(TrainedConfig):
    """Keys of `probe=diff_c`, below `probe.params`. The paper's budget is AdamW with step size 1e-4, weight decay 0.01
    and batches of 16."""

    form: Literal["released", "described"] = "released"
    """released: strides 1, 2, 2, 2 as in the released code; described: stride 2 four times (second hand)."""
    width: int = 1024
    """Channels of the convolutions."""
    dropout: float = 0.0
    """Share of the channels that a step leaves out after each convolution, and before the linear layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise ConfigError(f"width={self.width} is out of range: at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is out of range: 0 to below 1.")

    @property
    def default_learning_rate(self) -> float:
        """Step size of AdamW where none is set: that of the paper."""
        return 1e-4

    @property
    def measures_distance(self) -> bool:
        """The problem is not convex: a small gradient says nothing about a minimum."""
        return False


def make(config: Config, shapes: Mapping[str, Shape], n_classes: int, *, seed: int) -> "DiffCHead":
    """Return the untrained head for the maps of one cell."""
    return DiffCHead(config, shapes, n_classes)


class DiffCHead(nn.Module):
    """Logits from one map by four convolutions.

    Args:
        config: see `Config`.
        shapes: the cell, and the shape of its maps.
        n_classes: number of classes.
    """

    def __init__(self, config: Config, shapes: Mapping[str, Shape], n_classes: int) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        ((channels, _, _),) = shapes.values()
        width, strides = config.width, (1 if config.form == "released" else 2, 2, 2, 2)
        self.norm = JointBatchNorm(channels, affine=False)
        self.convolutions = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(channels if i == 0 else width, width, 3, stride=stride, padding=1),
                    JointBatchNorm(width),
                    nn.ReLU(),
                    nn.Dropout2d(config.dropout),
                )
                for i, stride in enumerate(strides)
            ]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, n_classes)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised features, which `inputs.joined` flattened."""
        (maps,) = maps_of(x, self.shapes).values()
        found = self.convolutions(self.norm(maps))
        logits: Tensor = self.linear(self.dropout(found.mean(dim=(2, 3))))
        return logits
