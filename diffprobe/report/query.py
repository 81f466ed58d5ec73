"""Fields of results by name, as `table.yaml` and `--where` use them."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, DiffprobeError, nearest
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.yaml_tree import parse_yaml

_RECORD = {"metric": "name", "split": "split", "target": "target", "probe": "probe", "cell": "cell"}
CELL_FIELDS: tuple[str, ...] = ("tap", "timestep", "condition", "pool")
"""Fields that are parts of a cell."""
_RUN = ("kind", "experiment", "run", "git_commit")
_JOIN = " + "
"""Separator of the names of the cells of a head that reads several."""
NAMES = (*_RECORD, *CELL_FIELDS, *_RUN)


def field_of(run: RunResult, record: MetricRecord, name: str) -> Any:
    """Return the value of one field; None where the result does not have it (no cell, no such config key).

    A head that reads several cells has the names of all of them, and of their parts those in which they differ:
    "mid_block + up_blocks.0".

    Raises: ConfigError for an unknown field.
    """
    if name == "cell" and record.cell is None:
        return _JOIN.join(cells_of(record)) or None
    if name in _RECORD:
        return getattr(record, _RECORD[name])
    if name in CELL_FIELDS:
        parts = list(dict.fromkeys(getattr(parse_cell(cell), name) for cell in cells_of(record)))
        return (parts[0] if len(parts) == 1 else _JOIN.join(map(str, parts))) if parts else None
    if name in _RUN:
        return getattr(run, name)
    if name.startswith("config."):
        return config_value(run.config, name.removeprefix("config."))
    raise _no_field(name)


def cells_of(record: MetricRecord) -> tuple[str, ...]:
    """Return the cells that a head reads: one, or those in `detail.cells` of a head on several; () for none."""
    if record.cell is not None:
        return (record.cell,)
    cells = record.detail.get("cells")
    return tuple(cell for cell in cells if isinstance(cell, str)) if isinstance(cells, list) else ()


@lru_cache(maxsize=1 << 16)
def parse_cell(name: str) -> Cell:
    """Parse the name of a cell, each name once. Raises: ConfigError."""
    try:
        return Cell.parse(name)
    except DiffprobeError:
        raise
    except ValueError as error:  # a timestep of thousands of digits
        raise ConfigError(f"'{name[:40]}...' is not a cell: {error}.") from error


def config_value(config: Mapping[str, Any], key: str) -> Any:
    """Look up a dotted key; None if any part is missing.

    >>> config_value({"data": {"limit": 5}}, "data.limit")
    5
    """
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def matches(run: RunResult, record: MetricRecord, conditions: Mapping[str, Any]) -> bool:
    """Return whether a result has all wanted values. A list matches any of its values; `experiment` matches folders."""
    for name, wanted in conditions.items():
        value = field_of(run, record, name)
        choices = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if name == "experiment":
            if not any(value == choice or str(value).startswith(f"{choice}/") for choice in choices):
                return False
        elif not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices):
            return False
    return True


def parse_condition(text: str) -> tuple[str, Any]:
    """Parse `FIELD=VALUE`; the value is YAML, so numbers and lists have their types.

    Raises: ConfigError without a `=`, for an unknown field, or for a value that is not valid YAML.

    >>> parse_condition("timestep=100")
    ('timestep', 100)
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"invalid filter '{text}'.", "expected: FIELD=VALUE")
    if name not in NAMES and not name.startswith("config."):
        raise _no_field(name)
    fix = f"a list is {name}=[1,2]; quote text that contains YAML characters: '{name}=\"[a\"'"
    return name, parse_yaml(value, where=f"invalid filter '{text}': the value", fix=fix).tree


def _no_field(name: str) -> ConfigError:
    close = nearest(name, NAMES, n=1)
    return ConfigError(
        f"unknown field '{name}' of results.",
        *([f"nearest: {close[0]}"] if close else []),
        f"fields: {', '.join(NAMES)}, config.<key>",
    )
