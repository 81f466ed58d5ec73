"""Entries of a table that have no result because their run failed: the table says so, and names the run.

Which entries a failed run would have filled is read from its configuration. What that does not show, such as the target
of a probe without targets, excludes no entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffprobe.core.failure import Failure
from diffprobe.report.filled_table import TableData
from diffprobe.report.query import config_value


def with_failures(table: TableData, failures: Sequence[Failure]) -> TableData:
    """Return a table whose empty entries name the failed run that should have filled them, the first by path.

    Args:
        table: a filled table.
        failures: runs that failed and have no result.
    """
    spec = table.spec
    failed = [failure for failure in failures if _is_allowed(failure, spec.filter)]
    if not failed:
        return table
    rows = []
    for row in table.rows:
        entries = tuple(
            entry
            if entry.value is not None
            else replace(entry, failure=next((one for one in failed if _is_allowed(one, entry.where)), None))
            for entry in row.entries
        )
        rows.append(replace(row, entries=entries))
    return replace(table, rows=tuple(rows))


def _is_allowed(failure: Failure, conditions: Mapping[str, Any]) -> bool:
    """Return whether the results of a failed run could have passed conditions."""
    for name, wanted in conditions.items():
        choices = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if name == "experiment":
            fits = any(failure.experiment == one or failure.experiment.startswith(f"{one}/") for one in choices)
        else:
            known = _known(failure, name)
            fits = known is None or any(value in known for value in choices)
        if not fits:
            return False
    return True


def _known(failure: Failure, field: str) -> list[Any] | None:
    """Return the values of a field that the results of a failed run would have; None if they are not known."""
    config = failure.config
    if field.startswith("config."):
        return [config_value(config, field.removeprefix("config."))]
    tap, _, timestep = str(config_value(config, "probe.cell") or "").partition("@t")
    several = "cell" in (config_value(config, "probe.grid") or {})
    if field == "tap":
        return [tap] if tap and not several else _without_patterns(config_value(config, "features.taps"))
    if field == "timestep":
        if timestep.isdecimal() and not several:
            return [int(timestep)]
        return None if config_value(config, "features.snr") else config_value(config, "features.timesteps")
    if field == "target":
        return config_value(config, "probe.targets") or None
    both = config_value(config, "features.unconditional")
    one = {
        "run": failure.run,
        "kind": config_value(config, "probe.kind"),
        "probe": config_value(config, "probe.name"),
        "condition": None if both else config_value(config, "features.condition"),
    }
    return None if one.get(field) is None else [one[field]]


def _without_patterns(taps: Sequence[str] | None) -> list[str] | None:
    """Return taps; None where a pattern or an alias may stand for others."""
    return None if not taps or any("*" in tap or "_ft" in tap or "-" in tap for tap in taps) else list(taps)
