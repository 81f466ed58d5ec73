"""Progress bars in the output of a notebook cell, as HTML that is replaced while work goes on. Needs IPython alone."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from diffprobe.core.terminal import one_line
from diffprobe.core.time_left import time_left

_EVERY_S = 0.2
"""Seconds between two updates: each is a message to the browser."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. Imports nothing.

    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """One bar: units done, units per second and the time left, by the mean speed so far.

    Args:
        show: replaces the HTML of the bar.
        total: units to come; None if not known yet.
        description: text before the bar.
        unit: what is counted.
        clock: seconds.
    """

    def __init__(
        self,
        show: Callable[[str], object],
        total: int | None,
        description: str,
        unit: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show, self._description, self._clock = show, description, clock
        self._drawn = self._started = 0.0
        self.restart(total, unit)

    def update(self, n: int, /) -> None:
        """Advance the bar by `n` units."""
        self._done += n
        now = self._clock()
        if now - self._drawn >= _EVERY_S or self._done == self._total:
            self._drawn = now
            self._draw(now)

    def restart(self, total: int | None, unit: str) -> None:
        """Set the bar to 0 of `total` units, for a task whose size is known late."""
        self._total, self._unit, self._done = total, unit, 0
        self._started = self._drawn = self._clock()
        self._draw(self._started)

    def _draw(self, now: float) -> None:
        seconds = now - self._started
        of, bar, left = "", "", ""
        if self._total is not None:
            of = f" of {self._total:,}"
            bar = f'<progress value="{min(self._done, self._total)}" max="{max(self._total, 1)}"></progress> '
            left = f", {time_left(self._done, self._total, seconds)}" if 0 < self._done < self._total else ""
        rate = f", {self._done / seconds:,.1f}/s" if self._done and seconds > 0 else ""
        text = f"{self._done:,}{of} {one_line(self._unit)}{rate}{left}"
        self._show(f"{escape(one_line(self._description))} {bar}{escape(text)}")


@contextmanager
def notebook_bar(total: int | None, description: str, unit: str) -> Iterator[NotebookBar]:
    """Open a bar in the output of the running cell; it is emptied when its block ends."""
    display: Any = sys.modules["IPython"].display
    handle = display.display(display.HTML(""), display_id=True)

    def show(html: str) -> None:
        handle.update(display.HTML(html))

    try:
        yield NotebookBar(show, total, description, unit)
    finally:
        show("")
