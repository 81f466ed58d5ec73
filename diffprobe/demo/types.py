"""What the parts of a demo hand to each other: the validated demo, what it left behind, and how progress is shown."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diffprobe.config.schema import RunConfig
from diffprobe.core.progress import Bar
from diffprobe.core.result import RunResult
from diffprobe.demo.config import DemoConfig
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.extract import backbone_and_features

REPORT = "report.html"
"""Name of the report page in the demo's folder."""


class Step(Protocol):
    """One step of the demo, as it is shown."""

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Open a bar of `total` units; a step that has nothing to do opens none."""

    def done(self, text: str) -> None:
        """Say what came out."""


class View(Protocol):
    """What a demo tells while it runs."""

    def opening(self, demo: "Demo") -> None:
        """Say what will be done."""

    def step(self, kind: str, title: str) -> AbstractContextManager[Step]:
        """Open a step."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A demo that was judged: every run's configuration is fine, its tables exist."""

    config: DemoConfig
    """The demo's own settings."""
    runs: tuple[RunConfig, ...]
    """Its runs, in order."""
    specs: tuple[TableSpec, ...]
    """Its tables."""

    @property
    def folder(self) -> Path:
        """Folder of its runs."""
        return Path(self.config.output)

    def stores(self) -> list[RunConfig]:
        """Return one run for each feature store that the runs read."""
        distinct = {(*backbone_and_features(run), run.data): run for run in reversed(self.runs)}
        return [run for run in self.runs if any(run is one for one in distinct.values())]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a demo left behind."""

    demo: Demo
    """What was asked for."""
    results: tuple[RunResult, ...]
    """One for each run, in order."""
    result_paths: tuple[Path, ...]
    """Their files."""
    store_paths: tuple[Path, ...]
    """The feature stores."""
    tables: tuple[str, ...]
    """The tables in Markdown, as `diffprobe table` prints them."""

    def of_kind(self, kind: str, *, control: str = "none") -> list[tuple[RunConfig, RunResult, Path]]:
        """Return the runs of one kind that measure a control, or that are no control: config, result, folder."""
        runs = zip(self.demo.runs, self.results, self.result_paths, strict=True)
        return [
            (run, found, path.parent) for run, found, path in runs if run.probe.kind == kind and run.control == control
        ]
