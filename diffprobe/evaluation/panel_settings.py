"""Settings of the panels of a page: how many latents, samples and directions are shown, and what groups samples."""

from dataclasses import dataclass

from diffprobe.analysis.statistics import SINGLE_SAMPLES
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PanelConfig:
    """Latents and directions in the report."""

    n_latents: int = 24
    """Number of latents of the sparse autoencoder."""
    min_active: int = 30
    """Training samples on which a latent must be active to be shown."""
    n_top: int = 9
    """Images per latent."""
    n_ends: int = 8
    """Largest number of samples at each end of a direction on the page; never more than half of all samples."""
    n_printed: int = 3
    """Number of samples at each end in the terminal."""
    group_by: str | None = None
    """Attribute that groups samples: each end shows a value once, and intervals resample whole values. "sample": no
    groups; None: the group that the data set names, no groups where it names none."""
    n_resamples: int = 1000
    """Bootstrap resamples of an interval."""
    picture_side: int = 96
    """Largest side length of a picture on the page, in pixels."""

    def group(self, of_data_set: str | None) -> str | None:
        """Return the attribute that groups the samples of a data set, whose own group is given; None for no groups."""
        return None if self.group_by == SINGLE_SAMPLES else self.group_by or of_data_set

    def __post_init__(self) -> None:
        for name in ("n_latents", "min_active", "n_top", "n_ends", "n_printed", "n_resamples", "picture_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")
