"""Attentive pooling: a class token that attends to the tokens of one map (the attention head of the DifFormer paper).

See `attention.py` for the construction and its source. At its tap (1024 channels, 16 x 16 places, 1000 classes) the
head has 27.8 M trained parameters, as the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.probes.classifier.attention import AttentionConfig, PooledMaps
from diffprobe.probes.classifier.inputs import Shape, maps_of

READS = "map"


@dataclass(frozen=True, kw_only=True)
class Config(AttentionConfig):
    """Keys of `probe=attentive`, below `probe.params`."""


def make(config: Config, shapes: Mapping[str, Shape], n_classes: int, *, seed: int) -> "AttentiveHead":
    """Return the untrained head for the maps of one cell."""
    return AttentiveHead(config, shapes, n_classes)


class AttentiveHead(nn.Module):
    """Logits from the tokens of one map.

    Args:
        config: see `AttentionConfig`.
        shapes: the cell, and the shape of its maps.
        n_classes: number of classes.
    """

    def __init__(self, config: Config, shapes: Mapping[str, Shape], n_classes: int) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        ((cell, shape),) = shapes.items()
        self.maps = PooledMaps([{cell: cell}], {cell: shape}, n_classes, config)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised features, which `inputs.joined` flattened."""
        logits: Tensor = self.maps(maps_of(x, self.shapes))
        return logits
