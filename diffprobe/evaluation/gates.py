"""Gates of an evaluation: least values of metrics, and controls that a metric has to exceed by a paired interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord

DIFFERENCES = "differences"
"""Key of `detail` with the paired difference to each control: estimate, low, high, level, n_groups."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a metric has to reach; with both keys, both."""

    at_least: float | None = None
    """Least value of the metric."""
    above: tuple[str, ...] = ()
    """Controls that the metric has to exceed: the interval of each paired difference has to be above 0, of enough
    families that they do not all agree by chance (6 at a level of 95 %)."""

    def __post_init__(self) -> None:
        if self.at_least is None and not self.above:
            raise ConfigError("a gate requires nothing.", fix="at_least: NUMBER, or above: [CONTROL]")
        if len(set(self.above)) < len(self.above):
            raise ConfigError(f"above: a control is named twice in {', '.join(self.above)}.")


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One requirement of a gate, and whether it was reached."""

    metric: str
    """ "<metric>/<split>"."""
    required: str
    """The requirement."""
    measured: str
    """What was measured."""
    reached: bool
    """Whether the requirement was reached."""

    @property
    def line(self) -> str:
        """Metric, measured and required."""
        return f"{self.metric} {self.measured}, {self.required} is required"


def check_gates(gates: Mapping[str, Gate], metrics: Sequence[MetricRecord]) -> list[GateCheck]:
    """Check each requirement of each gate, in their order. One whose metric was not measured is not reached.

    Args:
        gates: by "<metric>/<split>".
        metrics: records of the evaluation.

    >>> record = MetricRecord(name="psnr_db", value=26.0, split="test", n=3)
    >>> check_gates({"psnr_db/test": Gate(at_least=27)}, [record])[0].line
    'psnr_db/test is 26, at least 27 is required'
    """
    records = {f"{record.name}/{record.split}": record for record in metrics}
    checks = []
    for name, gate in gates.items():
        record = records.get(name)
        if gate.at_least is not None:
            measured = "was not measured" if record is None else f"is {record.value:.4g}"
            reached = record is not None and record.value >= gate.at_least
            required = f"at least {gate.at_least:g}"
            checks.append(GateCheck(metric=name, required=required, measured=measured, reached=reached))
        checks += [_check_above(name, record, control) for control in gate.above]
    return checks


def _check_above(name: str, record: MetricRecord | None, control: str) -> GateCheck:
    reached = False
    if record is None:
        measured = "was not measured"
    elif (found := record.detail.get(DIFFERENCES, {}).get(control)) is None:
        measured = f"is {record.value:.4g}, without an interval of its difference to {control}"
    else:
        reached = found["low"] > 0 and not _too_few(found)
        measured = (
            f"is {record.value:.4g}, {found['estimate']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}] "
            f"({found['level']:.0%}, {found['n_groups']} families) relative to {control}"
            + (", too few families for such an interval" if _too_few(found) else "")
        )
    return GateCheck(
        metric=name, required=f"an interval above 0 relative to {control}", measured=measured, reached=reached
    )


def _too_few(difference: Mapping[str, Any]) -> bool:
    """Return whether all families may agree by chance; an interval of a few equal values does not show that."""
    return bool(0.5 ** difference["n_groups"] > (1 - difference["level"]) / 2)
