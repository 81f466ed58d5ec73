"""Settings of `diffprobe eval depth` (experiment files of kind `evaluate_depth`)."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.dense_settings import DenseEvaluation

Control = Literal["pixels", "vae_latents", "random_weights", "mean_by_position", "shuffled_truth"]


@dataclass(frozen=True, kw_only=True)
class DepthEvaluation(DenseEvaluation):
    """The unit of the depth, and how it is read."""

    unit: float = 1.0
    """What a number of depth.png is multiplied with: 0.001 for millimetres that are scored in metres."""
    levels: bool = False
    """The numbers of depth.png are a few levels with no natural zero. They are scored by rmse and by the share of pixel
    pairs in the right order (`order`), and not by the ratios `abs_rel` and `delta1`."""
    order_gap: int = 1
    """With `levels`: score also the order of pixels whose levels are at least this far apart (`order_gap8`); 1: only
    that of all pairs."""
    controls: tuple[Control, ...] = ("pixels", "vae_latents", "random_weights", "mean_by_position", "shuffled_truth")
    """What is read beside the cells: 3 x 3 pixels, latents of the VAE, a denoiser of random weights, the mean depth at
    each position, and the chosen cell fitted on the depth of other images."""
    l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Ridge penalties, on standardised channels, ascending: val chooses one together with the cell."""

    @property
    def read_beside(self) -> tuple[str, ...]:
        """The controls."""
        return self.controls

    @property
    def penalties(self) -> tuple[float, ...]:
        """Strengths of the penalty among which val chooses, together with the cell."""
        return self.l2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.unit > 0:
            raise ConfigError(f"unit={self.unit:g} is out of range: more than 0.")
        at_least(1, order_gap=self.order_gap)
        if self.order_gap > 1 and not self.levels:
            raise ConfigError(f"order_gap={self.order_gap} has no effect without levels.", fix="levels=true")
