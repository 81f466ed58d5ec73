"""Comparison of measured with published numbers; those are in `experiments/`, with their sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffprobe.config.parse import parse
from diffprobe.core.errors import RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.table_spec import Published, TableSpec, Value


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published number and its difference to the measured one."""

    published: Published
    """The published number, with source and provenance."""
    delta: float | None
    """Measured minus published, in the unit of the metric; None if nothing was measured."""

    @property
    def within(self) -> bool | None:
        """Whether the measured value is within the tolerance; None if nothing was measured."""
        return None if self.delta is None else abs(self.delta) <= self.published.tolerance + 1e-12

    @property
    def note(self) -> str:
        """Source and provenance in one line."""
        return f"{self.published.source} ({self.published.provenance})"


def find_published(
    spec: TableSpec, where: Mapping[str, Value], found: Sequence[tuple[RunResult, MetricRecord]]
) -> Published | None:
    """Return the published number of one entry, from the table's file or the `published` block of its runs.

    Raises: RunFailed if these disagree.
    """
    numbers = [entry for entry in spec.published if entry.where == dict(where)]
    for run, record in found:
        block = run.config.get("published")
        if isinstance(block, Mapping) and block.get("metric") == record.name:
            tree = {key: value for key, value in block.items() if key != "metric"}
            numbers.append(parse(Published, {**tree, "where": dict(where)}, at=f"published of run '{run.run}'"))
    if any(number != numbers[0] for number in numbers):
        shown = "; ".join(f"{n.value} ({n.source}, {n.provenance})" for n in numbers)
        raise RunFailed(f"{dict(where)}: published values disagree.", shown)
    return numbers[0] if numbers else None


def compare(published: Published | None, value: float | None) -> Comparison | None:
    """Compare a measured value with a published one; None without a published one."""
    if published is None:
        return None
    return Comparison(published=published, delta=None if value is None else value - published.value)
