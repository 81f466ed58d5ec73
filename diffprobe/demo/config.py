"""What a demo consists of: runs of other experiment files, and what its report shows. Judged by `config/parse.py`."""

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
    """What the report shows of latents and directions."""

    n_latents: int = 24
    """LatentSection of the sparse autoencoder."""
    min_active: int = 30
    """Training samples on which a latent must be active to be shown."""
    n_top: int = 9
    """Images a latent."""
    n_ends: int = 8
    """Samples at each end of a direction on the page at most; of few samples no more than half stand at one end."""
    n_printed: int = 3
    """The same in the terminal."""
    group_by: str | None = None
    """Attribute of which each end shows a value once, and whose values are resampled whole in intervals; None: each
    sample stands for itself."""
    n_resamples: int = 1000
    """Bootstrap resamples of an interval."""
    picture_side: int = 96
    """Pixels that a picture of the page is shrunk to, if it is larger."""

    def __post_init__(self) -> None:
        for name in ("n_latents", "min_active", "n_top", "n_ends", "n_printed", "n_resamples", "picture_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The main job from shards to a report."""

    experiment: str = ""
    """Experiment file of the demo; filled in when it is read."""
    title: str
    """Heading of the report."""
    lead: str
    """One or two sentences under it."""
    output: str = "runs/demo"
    """Folder of the demo's runs and its report.html."""
    settings: tuple[str, ...] = ()
    """Settings of every run. Those of the run come after them, those of the command line last."""
    runs: tuple[RunSpec, ...]
    """Runs in order. Those that name the same features share one store."""
    tables: tuple[str, ...]
    """Tables to print, as in `diffprobe table NAME`; the first one stands on the page too, with its heat maps."""
    panels: PanelConfig = PanelConfig()
    """What the report shows of latents and directions."""
    limits: tuple[str, ...] = ()
    """What this demo does not know, besides what every report says."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next; printed at the end and on the page."""

    def __post_init__(self) -> None:
        for name in ("runs", "tables"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; a demo needs at least one.")
