"""Progress bars: the protocol that long-running functions accept, and the one display of them.

A bar is drawn on a terminal, with rich, and in a notebook; a file or a pipe (the log of a job) receives a line each
half minute instead.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from diffprobe.core.notebook_bar import NotebookBar, in_notebook, notebook_bar
from diffprobe.core.terminal import one_line, terminal_output
from diffprobe.core.time_left import time_left

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Bar(Protocol):
    """One progress bar."""

    def update(self, n: int, /) -> object:
        """Advance the bar by `n` units."""


MakeBar = Callable[[int], AbstractContextManager[Bar]]
"""Opens a bar, given the number of units to come."""

Announce = Callable[[str], object]
"""Receives one line of text for the user."""


class Countdown:
    """Announces the steps of work with their number and the time left, by the mean duration of the steps so far.

    Args:
        total: number of steps.
        announce: receives a line before each step.
        clock: seconds.

    >>> steps = Countdown(2, print, clock=iter((0.0, 0.0, 90.0)).__next__)
    >>> steps("first"), steps("second")
    1/2: first
    2/2, about 1 min left: second
    (None, None)
    """

    def __init__(self, total: int, announce: Announce, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._announce, self._clock = total, announce, clock
        self._started, self._begun = clock(), 0

    def __call__(self, line: str) -> None:
        """Announce the next step."""
        left = time_left(self._begun, self._total, self._clock() - self._started)
        self._begun += 1
        self._announce(f"{self._begun}/{self._total}{f', {left}' if self._begun > 1 else ''}: {line}")


@contextmanager
def reading_files(total: int, description: str, *, shown: bool = True) -> "Iterator[Callable[[str], None]]":
    """Show which of many files is read: a bar with the time left on a terminal, else a line for each.

    Args:
        total: number of files.
        description: what is done with them: "reading".
        shown: False shows nothing.
    Returns: what takes the name of each file before it is read.
    """
    make = ProgressDisplay(shown=shown, transient=True, lines=False)
    with make as display, display.bar(total, description, unit="files") as bar:
        begun = 0

        def begin(file: str) -> None:
            nonlocal begun
            bar.update(1 if begun else 0)  # the file before this one is done
            begun += 1
            if shown and not display.is_drawn:
                print(f"{description} {file}", file=sys.stderr, flush=True)

        yield begin


def print_note(line: str) -> None:
    """Print a line for the user on stderr, above the bars that are drawn there."""
    print(one_line(line), file=sys.stderr, flush=True)


LINE_EVERY_S = 30.0
"""Seconds between two lines of a task where nothing can be drawn."""


class TaskBar:
    """A bar of a `ProgressDisplay`: units done, units per second and the time left, by the mean speed so far."""

    def __init__(self, progress: "Progress", task: "TaskID", *, lines: Announce | None = None) -> None:
        self._progress, self._task, self._lines = progress, task, lines
        self._started, self._done = time.monotonic(), 0
        self._said = self._started

    def update(self, n: int, /) -> None:
        """Advance the bar by `n` units."""
        self._done += n
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        self._progress.update(self._task, advance=n, rate=f"{self._done / seconds:,.1f}/s")
        if self._lines is not None and now - self._said >= LINE_EVERY_S:
            self._said = now
            self._lines(self._line(seconds))

    def restart(self, total: int, unit: str) -> None:
        """Set the bar to 0 of `total` units, for a task whose size is known late."""
        self._started, self._done = time.monotonic(), 0
        self._said = self._started
        self._progress.reset(self._task, total=total, unit=one_line(unit), rate="")

    def _line(self, seconds: float) -> str:
        task = next(task for task in self._progress.tasks if task.id == self._task)
        what, unit = " ".join(task.description.split()), task.fields["unit"]
        if task.total is None:
            return f"{what}: {self._done:,} {unit}".rstrip()
        total = int(task.total)
        left = f", {time_left(self._done, total, seconds)}" if self._done < total else ""
        return f"{what}: {self._done:,} of {total:,} {unit}".rstrip() + left


class ProgressDisplay:
    """Progress bars below each other on one terminal, or in the output of a notebook cell; open it with `with`.

    Args:
        console: where to draw; stderr if None.
        shown: False draws nothing, and prints no lines.
        transient: remove the bars when the display is closed.
        lines: where nothing can be drawn, print a line each half minute.
    """

    def __init__(
        self, *, console: "Console | None" = None, shown: bool = True, transient: bool = False, lines: bool = True
    ) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._escaping = ExitStack()
        self._in_notebook = shown and console is None and in_notebook()
        console = Console(stderr=True) if console is None else console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
            disable=not (shown and console.is_terminal),
            speed_estimate_period=1e9,  # the mean speed: shards and their cached latents differ
        )
        self._lines = print_note if lines and shown and not self.is_drawn else None

    @property
    def is_drawn(self) -> bool:
        """Whether there is a terminal or a notebook to draw on."""
        return self._in_notebook or not self._progress.disable

    def __enter__(self) -> Self:
        from rich.file_proxy import FileProxy

        self._progress.start()
        if isinstance(sys.stdout, FileProxy):  # rich draws what is printed above the bars, and obeys codes in it
            self._escaping.enter_context(terminal_output())
        return self

    def __exit__(self, *_: object) -> None:
        self._escaping.close()
        self._progress.stop()

    @contextmanager
    def bar(
        self, total: int | None, description: str, *, unit: str = "", keep: bool = True
    ) -> "Iterator[TaskBar | NotebookBar]":
        """Open a bar.

        Args:
            total: units to come; None if not known yet (see `TaskBar.restart`).
            description: text before the bar.
            unit: what is counted, in the plural: "images".
            keep: leave the bar on the display when its block ends; a notebook never keeps it.
        """
        if self._in_notebook:
            with notebook_bar(total, description, unit) as bar:
                yield bar
            return
        task = self._progress.add_task(one_line(description), total=total, unit=one_line(unit), rate="")
        try:
            yield TaskBar(self._progress, task, lines=self._lines)
        finally:
            if not keep:
                self._progress.remove_task(task)
