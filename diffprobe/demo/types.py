"""Types of a demo: the validated demo, its outcome, and the protocols by which progress is shown."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffprobe.config.schema import RunConfig
from diffprobe.core.progress import Bar
from diffprobe.core.result import RunResult
from diffprobe.demo.config import DemoConfig
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.evaluation.use import UseEvaluation
from diffprobe.report.filled_table import TableData
from diffprobe.report.table import Table
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.extract import backbone_and_features

REPORT = "report.html"
"""File name of the report page in the folder of the demo."""


@runtime_checkable
class Step(Protocol):
    """One step of the demo on display."""

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Open a progress bar of `total` units; a step without work opens none."""

    def done(self, text: str) -> None:
        """Set the result of the step."""


@runtime_checkable
class View(Protocol):
    """The display of a running demo."""

    def opening(self, demo: "Demo") -> None:
        """Show the demo before it starts."""

    def step(self, kind: str, title: str) -> AbstractContextManager[Step]:
        """Open a step."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A validated demo: the configurations of all runs are valid and its tables exist."""

    config: DemoConfig
    """The configuration of the demo."""
    runs: tuple[RunConfig, ...]
    """Its runs, in order."""
    specs: tuple[TableSpec, ...]
    """Its tables."""
    use: tuple[UseEvaluation, ...] = ()
    """Its measurements of what the backbone uses."""
    left_out: tuple[str, ...] = ()
    """Rungs of a ladder that do not apply, each with the reason."""

    @property
    def folder(self) -> Path:
        """Folder of the runs."""
        return Path(self.config.output)

    def stores(self) -> list[RunConfig]:
        """Return one run per feature store that the runs read."""
        distinct = {(*backbone_and_features(run), run.data): run for run in reversed(self.runs)}
        return [run for run in self.runs if any(run is one for one in distinct.values())]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of a demo."""

    demo: Demo
    """The demo that was run."""
    results: tuple[RunResult, ...]
    """One per run, in order."""
    result_paths: tuple[Path, ...]
    """Their files."""
    use_results: tuple[RunResult, ...] = ()
    """One per measurement of what the backbone uses, in order."""
    use_paths: tuple[Path, ...] = ()
    """Their files."""
    store_paths: tuple[Path, ...]
    """The feature stores."""
    filled: tuple[TableData, ...]
    """The tables of the demo, in order, with what kept predictions show."""

    @property
    def all_results(self) -> tuple[RunResult, ...]:
        """All results, the source of the tables."""
        return (*self.results, *self.use_results)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables in Markdown, as `diffprobe table` prints them."""
        return tuple(Table((table,)).to_markdown() for table in self.filled)

    @property
    def on_page(self) -> tuple[TableData, ...]:
        """The tables on the page."""
        config = self.demo.config
        names = config.on_page or config.tables[:1]
        return tuple(table for name, table in zip(config.tables, self.filled, strict=True) if name in names)

    def probe_runs(self) -> tuple[ProbeRun, ...]:
        """Return the runs as the panels of a page read them."""
        runs = zip(self.demo.runs, self.results, self.result_paths, strict=True)
        return tuple(ProbeRun(config=run, result=found, folder=path.parent) for run, found, path in runs)

    def of_kind(self, kind: str, *, control: str = "none") -> list[tuple[RunConfig, RunResult, Path]]:
        """Return the runs of one kind and control ("none": ordinary runs): config, result, folder."""
        runs = zip(self.demo.runs, self.results, self.result_paths, strict=True)
        return [
            (run, found, path.parent) for run, found, path in runs if run.probe.kind == kind and run.control == control
        ]
