"""The configuration of a demo: runs of other experiment files, and the content of its report."""

from dataclasses import dataclass

from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of an experiment file."""

    experiment: str
    """Experiment file without suffix, for example emoji/classifier."""
    settings: tuple[str, ...] = ()
    """Settings of this run, as on the command line: control=random_weights, probe=ridge, ..."""


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
    """Attribute that groups samples: each end shows a value once, and intervals resample whole values. None: no
    groups."""
    n_resamples: int = 1000
    """Bootstrap resamples of an interval."""
    picture_side: int = 96
    """Largest side length of a picture on the page, in pixels."""

    def __post_init__(self) -> None:
        for name in ("n_latents", "min_active", "n_top", "n_ends", "n_printed", "n_resamples", "picture_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """A demo: the main job from shards to a report."""

    experiment: str = ""
    """Experiment file of the demo; set when it is read."""
    title: str
    """Heading of the report."""
    lead: str
    """One or two sentences under it."""
    output: str = "runs/demo"
    """Folder of the runs and of report.html."""
    settings: tuple[str, ...] = ()
    """Settings of every run. Settings of a single run override them, those of the command line override both."""
    runs: tuple[RunSpec, ...]
    """Runs in order. Runs with the same features share one store."""
    tables: tuple[str, ...]
    """Tables to print, as in `diffprobe table NAME`; the first is on the page too, with its heat maps."""
    panels: PanelConfig = PanelConfig()
    """Latents and directions in the report."""
    limits: tuple[str, ...] = ()
    """Limits of this demo, in addition to those of every report."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next; printed at the end and on the page."""

    def __post_init__(self) -> None:
        for name in ("runs", "tables"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; a demo needs at least one.")
