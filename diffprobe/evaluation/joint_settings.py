"""Settings of `diffprobe eval joint`."""

from dataclasses import dataclass

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JointEvaluation:
    """Settings of `diffprobe eval joint` (experiment files of kind `evaluate_joint`)."""

    experiment: str
    """Name of the experiment."""
    run: str
    """Folder of a finished run of kind `train_denoiser`, with or without `alignment`."""
    split: str | None = None
    """Split of the run's images whose captions are retrieved; None for its test split."""
    limit: int | None = None
    """Number of its images, the first ones in shard order; None for all."""
    ranks: tuple[int, ...] = (1, 5, 10)
    """k of the recalls."""
    ddim_steps: int = 10
    """Steps of the iterative inference of the alignment head."""
    query_guidance: tuple[float, ...] = (0.0, 1.0)
    """w of the inference of the head: (1 + w) times the prediction minus w times that without an image; each is
    measured."""
    group_attribute: str | None = None
    """Attribute whose values are resampled for intervals of recalls; None for single images."""
    reader: str = "scenes-reader"
    """Frozen reader of generated images, trained on renderings: `scenes-reader`, or the folder of a run of kind
    `train_reader`."""
    n_per_role: int = 20
    """Generated images per role, and as many rendered ones that they are compared with; 0 measures no generation."""
    guidance: float = 1.0
    """Added to the scale of classifier-free guidance of generation: 0 is none (scale 1 in diffusers)."""
    sampling_steps: int = 20
    """DDIM steps of generation."""
    n_resamples: int = 1000
    """Draws of intervals."""
    seed: int = 0
    """Seed of prompts, noise, rendered images, the shuffle and draws."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit, ddim_steps=self.ddim_steps, sampling_steps=self.sampling_steps)
        at_least(1, n_resamples=self.n_resamples)
        at_least(0, n_per_role=self.n_per_role, guidance=self.guidance)
        ranks, weights = self.ranks, self.query_guidance
        if not ranks or min(ranks) < 1 or len(set(ranks)) < len(ranks):
            raise ConfigError(f"ranks={list(ranks)}: at least one, each at least 1 and once.")
        if not weights or min(weights) < 0 or len(set(weights)) < len(weights):
            raise ConfigError(f"query_guidance={list(weights)}: at least one, each at least 0 and once.")
