"""Read YAML that others wrote: the tree and the line of each key, or one error that names the place and the cause.

YAML can refer to itself (aliases), name NaN and infinity, repeat keys, and nest without end; none of that is needed in
a table, and each of it is refused.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from diffprobe.config.search_path import display
from diffprobe.config.yaml_guard import MAX_DEPTH, check_file
from diffprobe.core.errors import ConfigError

_LARGEST = 2**63
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml is ten times as fast


class YamlTree(NamedTuple):
    """The content of a YAML text."""

    tree: Any
    """Mappings, lists and scalars."""
    lines: dict[str, int]
    """Dotted key -> its line, from 1."""


def read_yaml_tree(path: Path) -> YamlTree:
    """Read a YAML file. Raises: ConfigError for another file than a regular one, or a large one; see `parse_yaml`."""
    name = display(path)
    check_file(path, name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not valid YAML.", f"not UTF-8: {error.reason}", fix="save it as UTF-8") from error
    return parse_yaml(text, where=name)


def parse_yaml(text: str, *, where: str, fix: str | None = None) -> YamlTree:
    """Parse one YAML document.

    Args:
        where: its place, for messages.
        fix: the next step of the user, for messages.

    Raises: ConfigError for invalid YAML, aliases, repeated keys, nesting deeper than `MAX_DEPTH`, and numbers that are
        NaN, infinite or too large.
    """
    try:
        _check_events(text, where, fix)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            tree = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an impossible date, a number of 5,000 digits
        raise ConfigError(f"{where} is not valid YAML.", *str(error).splitlines(), fix=fix) from error
    repeated = [f"'{key}': lines {first} and {line}" for key, first, line in _repeated_keys(node, "")]
    if repeated:
        raise ConfigError(f"{where} has repeated keys.", *repeated, fix=fix)
    lines = dict(_lines(node, ""))
    for at, number in _bad_numbers(tree, ""):
        place = f", line {lines[at]}" if at in lines else ""
        raise ConfigError(f"{where}{place}: '{at or 'the value'}' is {number}, expected a finite number.", fix=fix)
    return YamlTree(tree, lines)


def _check_events(text: str, where: str, fix: str | None) -> None:
    """Refuse aliases and deep nesting before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{where}, line {line}: an alias (*{event.anchor[:40]}) is not read; repeat the text.", fix=fix
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}, line {line}: nested deeper than {MAX_DEPTH} levels.", fix=fix)


def _repeated_keys(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int, int]]:
    """Yield each dotted key that a mapping repeats, with both line numbers, from 1."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            full, line = f"{at}.{key.value}" if at else str(key.value), key.start_mark.line + 1
            name = (key.tag, str(key.value))  # 1 and "1" are two keys
            if name in seen:
                yield full, seen[name], line
            seen[name] = line
            yield from _repeated_keys(value, full)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _repeated_keys(value, f"{at}[{i}]")


def _lines(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int]]:
    """Yield each dotted key of a YAML tree with its line number, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{at}.{key.value}" if at else str(key.value)
            yield full, key.start_mark.line + 1
            yield from _lines(value, full)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield f"{at}[{i}]", value.start_mark.line + 1
            yield from _lines(value, f"{at}[{i}]")


def _bad_numbers(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the text of each number that is not finite or does not fit into 64 bits."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _bad_numbers(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _bad_numbers(item, f"{at}[{i}]")
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, int) and not -_LARGEST <= value < _LARGEST
    ):
        yield at, str(value)[:40]
