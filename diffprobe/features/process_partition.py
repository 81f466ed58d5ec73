"""The part of an extraction that this process does. Parts consist of whole shards and need no communication."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffprobe.core.processes import started


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`."""

    index: int = 0
    count: int = 1
    note: str = ""
    """Source of the numbers, or the reason for their absence; empty for a single process."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def share_of(environ: Mapping[str, str]) -> Share:
    """Return the part of this process by its environment; the whole if no launcher started several processes.

    Raises: ConfigError if the numbers in the environment are incomplete or contradict each other.
    """
    found = started(environ)
    return Share(found.rank, found.count, found.note or (found.shown if found.count > 1 else ""))
