"""Settings of `diffprobe eval segmentation` (experiment files of kind `evaluate_segmentation`)."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

Control = Literal["pixels", "colours", "vae_latents", "random_weights", "mean_by_position", "shuffled_masks"]


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation:
    """Which classes are read, from how many labelled images, and in which cells."""

    experiment: str = ""
    """Name of the experiment."""
    backbone: BackboneConfig
    """The frozen model."""
    data: DataConfig
    """The images: readouts are fitted on `train_split`, cells chosen on `val_split` and scored on `test_split`."""
    features: FeaturesConfig
    """The cells, with pool=none."""
    classes: dict[str, tuple[int, ...]]
    """Class -> the values of mask.png that it has."""
    labels: tuple[int, ...] = (4, 16, 64, 256)
    """Numbers of labelled images, ascending; the smaller sets are part of the larger ones."""
    pool: int = 1000
    """Images of train, the first ones, of which the labelled ones are drawn by group."""
    n_val: int = 100
    """Images of val, the first ones."""
    n_test: int = 200
    """Images of test, the first ones."""
    controls: tuple[Control, ...] = (
        "pixels", "colours", "vae_latents", "random_weights", "mean_by_position", "shuffled_masks"
    )  # fmt: skip
    """What is read beside the cells: 3 x 3 pixels, the nearest mean colour of a class, latents of the VAE, a denoiser
    of random weights, the most frequent class at each position, and the chosen cell fitted on masks of other images."""
    l2: float = 1e-3
    """Penalty of the readouts, on standardised channels."""
    steps: int = 60
    """Largest number of L-BFGS iterations of a readout."""
    seed: int = 0
    """Seed of the labelled sets, the shuffle and the bootstrap. The seed of the noise is features.seed."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(2, n_val=self.n_val, n_test=self.n_test)
        at_least(1, steps=self.steps)
        if not self.labels or self.labels[0] < 2 or list(self.labels) != sorted(set(self.labels)):
            raise ConfigError(f"labels={list(self.labels)}: ascending numbers of images, at least 2 each.")
        if self.labels[-1] > self.pool:
            raise ConfigError(f"pool={self.pool} images hold no {self.labels[-1]} labelled ones.", fix="a larger pool")
        if not self.l2 > 0:
            raise ConfigError(f"l2={self.l2} is out of range: more than 0.")
        if self.features.pool != "none":
            raise ConfigError(
                f"features.pool={self.features.pool}: a readout needs the whole map.", fix="features.pool=none"
            )
        if self.features.keep_draws:
            raise ConfigError("features.keep_draws: the draws are averaged before reading.", fix="leave it unset")
        if self.features.views.active:
            raise ConfigError("features.views: an evaluation reads the images themselves.", fix="remove the views")
        if self.data.limit is not None:
            raise ConfigError("data.limit has no effect.", fix="labels, n_val and n_test")
        if len(set(self.controls)) != len(self.controls):
            raise ConfigError(f"controls={list(self.controls)}: each once.")

    @property
    def cost_lines(self) -> list[str]:
        """Lines on the denoiser passes, from the settings alone."""
        features, images = self.features, self.labels[-1] + self.n_val + self.n_test
        steps = len({*features.timesteps, *features.snr})
        each = steps * features.draws * (2 if features.unconditional else 1)
        lines = [f"denoiser passes of {images:,} images: {each * images:,}"]
        if "random_weights" in self.controls:
            lines.append(f"of the random denoiser: {each * images:,} more")
        return lines
