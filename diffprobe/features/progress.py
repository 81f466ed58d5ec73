"""What is said while an extraction runs: the bar, and lines before and after it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Bar(Protocol):
    """What shows how far extraction is."""

    def update(self, n: int, /) -> object:
        """Advance by `n` images."""


MakeBar = Callable[[int], AbstractContextManager[Bar]]
"""Takes the number of images to come."""

Announce = Callable[[str], object]
"""Takes one line for people."""


def make_bar(n: int, progress: bool | MakeBar) -> AbstractContextManager[Bar]:
    """Make the bar of an extraction: images done of those to come, images a second, the time left.

    It counts what this process has still to do; what an earlier run left complete is in no number. The time left rests
    on the mean speed so far: shards may differ, and a cache of latents is filled a shard at a time.
    """
    if callable(progress):
        return progress(n)
    from tqdm import tqdm

    bar: Any = tqdm(total=n, unit="image", desc="extract", disable=not progress, dynamic_ncols=True, smoothing=0)
    return bar  # type: ignore[no-any-return]


def make_side_bar(n: int, progress: bool | MakeBar, name: str) -> AbstractContextManager[Bar]:
    """Make a bar for a step before images count as done; it goes when it is full. Silent beside a bar of one's own."""
    from tqdm import tqdm

    shown = progress is True
    bar: Any = tqdm(total=n, unit="image", desc=name, disable=not shown, dynamic_ncols=True, smoothing=0, leave=False)
    return bar  # type: ignore[no-any-return]


def rate(n: int, seconds: float) -> str:
    """Write a number of images and their time for people.

    >>> rate(1500, 60)
    '1,500 images in 60.0 s (25.0 images/s)'
    """
    return f"{n:,} images in {seconds:,.1f} s ({n / max(seconds, 1e-9):,.1f} images/s)"
