"""DifFormer: one attention head for several taps and timesteps (Mukhopadhyay et al., arXiv 2311.17921, section 4).

A run has one head for each target, which reads all its cells. The tokens of all taps of a timestep (and condition) are
pooled together, by the attention of `attentive` with weights shared over the timesteps; the class tokens of the
timesteps are classified together. With one cell it is `attentive`. At the paper's taps (ADM, blocks 19, 24 and 30,
three timesteps, 1000 classes) it has 31.8 M trained parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.attention import AttentionConfig, PooledMaps
from diffprobe.probes.classifier.inputs import Shape, maps_of

READS = "maps"


@dataclass(frozen=True, kw_only=True)
class Config(AttentionConfig):
    """Keys of `probe=difformer`, below `probe.params`."""


def make(config: Config, shapes: Mapping[str, Shape], n_classes: int, *, seed: int) -> "DifFormerHead":
    """Return the untrained head for the maps of all cells."""
    return DifFormerHead(config, shapes, n_classes)


class DifFormerHead(nn.Module):
    """Logits from the tokens of several taps and timesteps.

    Args:
        config: see `AttentionConfig`.
        shapes: shape of the maps of each cell.
        n_classes: number of classes.

    Raises: ConfigError for a tap whose maps differ in shape between timesteps.
    """

    def __init__(self, config: Config, shapes: Mapping[str, Shape], n_classes: int) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        groups: dict[tuple[int, str], dict[str, str]] = {}
        taps: dict[str, Shape] = {}
        for name, shape in shapes.items():
            cell = Cell.parse(name)
            groups.setdefault((cell.timestep, cell.condition), {})[name] = cell.tap
            if taps.setdefault(cell.tap, shape) != shape:
                raise ConfigError(f"tap '{cell.tap}' has maps of shapes {taps[cell.tap]} and {shape}.")
        self.maps = PooledMaps([groups[key] for key in sorted(groups)], taps, n_classes, config)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised features, which `inputs.joined` flattened."""
        logits: Tensor = self.maps(maps_of(x, self.shapes))
        return logits
