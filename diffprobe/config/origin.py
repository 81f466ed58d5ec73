"""Which file and line each key came from. Reads the merged files a second time, for places and not for values."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from diffprobe.config.locate import display, find
from diffprobe.core.errors import ConfigError

COMMAND_LINE = ("the command line", 0)


def origins(merged: Sequence[tuple[str, str]], folders: list[Path]) -> dict[str, tuple[str, int]]:
    """Map each dotted key to the file and line (from 1) of the value that won.

    Args:
        merged: (config name, package) of each file in merge order; later ones win.
        folders: the search path.
    """
    found: dict[str, tuple[str, int]] = {}
    for name, package in merged:
        path = find(name, folders)
        if path is None:
            continue  # Hydra's own built-in configs lie in its package
        shown = display(path)
        for key, line in _keys(_node(path), package.replace("_global_", "").strip(".")):
            found[key] = (shown, line)
    return found


def read_schema(path: Path) -> str | None:
    """Return the `schema:` key of an experiment file, None if it has none. Raises: ConfigError on broken YAML."""
    node = _node(path)
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if key.value == "schema":
            return str(value.value)
    return None


def _node(path: Path) -> yaml.Node | None:
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.compose(file, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        lines = str(error).splitlines()
        raise ConfigError(f"{display(path)} is not readable YAML: {lines[0]}.", *lines[1:]) from error


def _keys(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not at and key.value in ("defaults", "schema"):
            continue
        full = f"{at}.{key.value}" if at else str(key.value)
        yield full, key.start_mark.line + 1
        yield from _keys(value, full)
