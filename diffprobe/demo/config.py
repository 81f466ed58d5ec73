"""The configuration of a demo: runs of other experiment files, and the content of its report."""

from dataclasses import dataclass

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.panel_settings import PanelConfig


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of an experiment file."""

    experiment: str
    """Experiment file without suffix, for example emoji/classifier."""
    settings: tuple[str, ...] = ()
    """Settings of this run, as on the command line: control=ladder (each rung that applies), probe=ridge, ..."""


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
    use: tuple[RunSpec, ...] = ()
    """Measurements of `diffprobe eval use`, after the runs: experiment file and settings of each."""
    tables: tuple[str, ...]
    """Tables to print, as in `diffprobe table NAME`."""
    on_page: tuple[str, ...] = ()
    """Those of the tables that are on the page too, with their heat maps; empty: the first one."""
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
        absent = [name for name in self.on_page if name not in self.tables]
        if absent:
            raise ConfigError(f"on_page: {', '.join(absent)} is not among tables: {', '.join(self.tables)}.")
