"""Settings of `diffprobe eval segmentation` (experiment files of kind `evaluate_segmentation`)."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.dense_settings import DenseEvaluation

Control = Literal["pixels", "colours", "vae_latents", "random_weights", "mean_by_position", "shuffled_truth"]
Head = Literal["linear", "convolutional"]
LINEAR_L2 = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties of the linear readout among which val chooses, if none are set."""
WEIGHT_DECAY = 1e-2
"""Weight decay of the convolutional head."""


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(DenseEvaluation):
    """Which classes are read, by which head, from how many labelled images, and in which cells."""

    classes: dict[str, tuple[int, ...]]
    """Class -> the values of mask.png that it has."""
    ignore: tuple[int, ...] = ()
    """Values of mask.png that are neither fitted nor scored, as 255 of VOC. Values that are in no class and not here
    are refused."""
    head: Literal["linear", "convolutional"] = "linear"
    """`linear`: 1 x 1. `convolutional`: 3 x 3, GELU, 1 x 1, which reads a place with its neighbours."""
    controls: tuple[Control, ...] = (
        "pixels", "colours", "vae_latents", "random_weights", "mean_by_position", "shuffled_truth"
    )  # fmt: skip
    """What is read beside the cells: 3 x 3 pixels, the nearest mean colour of a class, latents of the VAE, a denoiser
    of random weights, the most frequent class at each position, and the chosen cell fitted on masks of other images."""
    l2: tuple[float, ...] = ()
    """Penalties of the linear readout, on standardised channels, ascending: val chooses one together with the cell.
    None: 1e-4, 1e-3, 1e-2 and 1e-1."""
    steps: int | None = None
    """Largest number of L-BFGS iterations of a linear readout (None: 60), or steps of a convolutional head (200)."""

    @property
    def read_beside(self) -> tuple[str, ...]:
        """The controls."""
        return self.controls

    @property
    def penalties(self) -> tuple[float, ...]:
        """Strengths of the penalty among which val chooses, together with the cell."""
        if self.head == "convolutional":
            return (WEIGHT_DECAY,)
        return self.l2 or LINEAR_L2

    @property
    def n_steps(self) -> int:
        """Steps of a fit."""
        if self.steps is not None:
            return self.steps
        return 60 if self.head == "linear" else 200

    def __post_init__(self) -> None:
        from diffprobe.shards.class_maps import class_table

        super().__post_init__()
        at_least(1, steps=self.n_steps)
        class_table(self.classes, self.ignore)
        if self.head == "convolutional" and self.l2:
            raise ConfigError(
                f"l2={list(self.l2)} has no effect on head=convolutional.",
                f"its weight decay is {WEIGHT_DECAY:g}",
                fix="remove it",
            )
