"""The terminal output of a demo; its tables are those of `diffprobe table`."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffprobe.core.notebook_bar import NotebookBar
from diffprobe.core.progress import ProgressDisplay, TaskBar
from diffprobe.core.terminal import one_line, printable, replace_unencodable
from diffprobe.demo.types import REPORT, Demo, Outcome
from diffprobe.report.pages.panels import DirectionPanel, Estimate, Picture

_KIND, _TITLE, _TEXT = 12, 32, 24
_WIDTH = 110


class _Step:
    def __init__(self, bar: TaskBar | NotebookBar) -> None:
        self._bar = bar
        self.text = ""

    @contextmanager
    def bar(self, total: int, unit: str) -> Iterator[TaskBar | NotebookBar]:
        self._bar.restart(total, unit)
        yield self._bar

    def done(self, text: str) -> None:
        self.text = text


class DemoConsole:
    """Shows a demo step by step: a progress bar while a step runs, one line when it is done.

    Args:
        console: output console; stdout if None. Progress bars appear on terminals only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        replace_unencodable(self.console.file)
        if not self.console.is_terminal:  # Rich assumes a width of 80 for files and pipes
            self.console.width = _WIDTH
        self._started = time.monotonic()

    def loading(self) -> AbstractContextManager[object]:
        """Show a status while libraries are imported and configurations are validated."""
        return self.console.status("loading")

    def opening(self, demo: Demo) -> None:
        """Print title and facts."""
        from diffprobe.demo.page import demo_facts

        with self.loading():
            facts = demo_facts(demo)
        self.heading(demo.config.title, facts)

    def heading(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print a title and name -> value pairs."""
        self.console.print()
        self.console.print(_text(title, "bold"))
        self.console.print()
        self._pairs(facts)
        self.console.print()

    @contextmanager
    def step(self, kind: str, title: str) -> Iterator[_Step]:
        """Show a progress bar while the step runs, then one line with its result and duration."""
        started = time.monotonic()
        display = ProgressDisplay(console=self.console, transient=True)
        with display, display.bar(None, f"{kind:<{_KIND}}{title:<{_TITLE}}") as bar:
            step = _Step(bar)
            yield step
        kind, title, text = one_line(kind), one_line(title), one_line(step.text)
        line = Text("✓ ", style="green").append(f"{kind:<{_KIND}}", style="bold").append(f"{title:<{_TITLE}}")
        line.append(f"{text:<{_TEXT}}", style="dim").append(f"{time.monotonic() - started:>6.1f} s")
        self.console.print(line)

    def tables(self, outcome: Outcome) -> None:
        """Print the tables exactly as `diffprobe table` does."""
        for table in outcome.tables:
            self.console.print()
            self.console.file.write(printable(table))

    def directions(self, panels: Sequence[DirectionPanel], n: int) -> None:
        """Print the AUROC of each direction, and the captions at its two ends."""
        if not panels:
            return
        self._heading("The two ends of each direction, on held-out images")
        for panel in panels:
            shown = next(e for e in panel.estimates if e.estimator == panel.shown)
            title = _text(panel.target.replace("_", " "), "bold")
            self.console.print(title.append(f"  {_auroc(shown)}", style="not bold"))
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", min_width=10)
            grid.add_column(justify="right", style="dim")
            grid.add_column(overflow="fold")
            for name, end in ((panel.positive, panel.positive_end), (panel.negative, panel.negative_end)):
                for i, picture in enumerate(end[:n]):
                    grid.add_row(_text(f"  {name}" if i == 0 else ""), _value(picture), _text(picture.caption))
            self.console.print(grid)

    def closing(self, outcome: Outcome) -> None:
        """Print the paths of all outputs, the next commands, time and memory."""
        folder, config = outcome.demo.folder, outcome.demo.config
        rows = [("report", str(folder / REPORT))]
        rows += [("results", f"{len(outcome.results)} result.json files and their probes, below {folder}")]
        rows += [("stores", ", ".join(str(path) for path in outcome.store_paths))]
        rows += [("tables", f"diffprobe table {name} --results {folder}") for name in config.tables]
        self.ending(rows, "Next, on your own models and images", config.next_steps)

    def lines(self, title: str, lines: Sequence[str]) -> None:
        """Print lines of a table or of text under a heading; long ones are not wrapped."""
        self._heading(title)
        for line in lines:
            self.console.print(_text(f"  {line}"), soft_wrap=True)

    def ending(self, paths: Sequence[tuple[str, str]], title: str, next_steps: Sequence[str]) -> None:
        """Print where everything is, the next commands under their title, time and memory."""
        self._heading("Where everything is")
        self._pairs(paths)
        if next_steps:
            self._heading(title)
            for command in next_steps:
                self.console.print(_text(f"  {command}"), soft_wrap=True)
        self.console.print()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        seconds = time.monotonic() - self._started
        self.console.print(Text(f"took {seconds:.0f} s, peak memory {memory / 1e9:.1f} GB", style="dim"))

    def _heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", min_width=10, no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs:
            grid.add_row(_text(f"  {name}"), _text(value))
        self.console.print(grid)


def _text(text: str, style: str = "") -> Text:
    """Return text of the data as rich prints it: without markup, control characters escaped."""
    return Text(one_line(text), style=style)


def _auroc(estimate: Estimate) -> str:
    text = f"AUROC {estimate.auroc:.3f}"
    if estimate.interval is not None:
        text += f" ({estimate.interval[0]:.3f} to {estimate.interval[1]:.3f})"
    control = estimate.strongest_control
    comparison = "not above the " if estimate.below_control else ""
    controls = "" if control is None else f"; {comparison}strongest control {control[1]:.3f}, {control[0]}"
    return f"{text}, {estimate.n:,} images, {estimate.estimator.replace('_', ' ')}{controls}"


def _value(picture: Picture) -> str:
    return "" if picture.value is None else f"{picture.value:+.2f}"
