"""Settings of `diffprobe eval long-tail`."""

from dataclasses import dataclass

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

RENDERER = "renderer"
"""Value of `model` for rendered images, the positive control."""


@dataclass(frozen=True, kw_only=True)
class LongTailEvaluation:
    """Settings of `diffprobe eval long-tail` (experiment files of kind `evaluate_long_tail`)."""

    experiment: str
    """Name of the experiment."""
    run: str
    """Folder of a finished run of kind `train_denoiser` with `classes`, on the roles of scenes or on clusters; or of
    one of kind `train_self_guided`, which is unconditional."""
    model: str | None = None
    """Pipeline that draws the images instead of that of the run: a folder, or "renderer" for rendered images."""
    reader: str = "scenes-reader"
    """Frozen reader of the images, trained on renderings: `scenes-reader`, or the folder of a run of kind
    `train_reader`."""
    n_per_class: int = 50
    """Generated images per class, and as many rendered ones that they are compared with."""
    k: int = 5
    """Nearest neighbours of precision, recall, density and coverage."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers)."""
    sampling_steps: int = 20
    """DDIM steps."""
    overlap_images: int = 4
    """Rendered images per class at which the reverse kernels of all classes are compared; 0 measures no overlap. Models
    without labels have none."""
    overlap_timesteps: tuple[int, ...] = (100, 300, 600)
    """Timesteps of the comparison."""
    n_resamples: int = 1000
    """Draws of intervals."""
    seed: int = 0
    """Seed of noise, rendered images and draws."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, sampling_steps=self.sampling_steps, n_resamples=self.n_resamples, k=self.k)
        at_least(0, guidance=self.guidance, overlap_images=self.overlap_images)
        if self.n_per_class <= self.k:
            raise ConfigError(
                f"n_per_class={self.n_per_class} is too small for k={self.k} nearest neighbours.",
                fix=f"n_per_class={self.k + 1} or more",
            )
        if self.overlap_images and (not self.overlap_timesteps or min(self.overlap_timesteps) < 1):
            raise ConfigError(
                f"overlap_timesteps={list(self.overlap_timesteps)} are out of range: from 1, at least one."
            )
