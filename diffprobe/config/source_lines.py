"""Find the file and line of each key, by reading the merged files a second time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from diffprobe.config.search_path import display, find
from diffprobe.config.yaml_guard import read_node
from diffprobe.core.errors import ConfigError

COMMAND_LINE = ("the command line", 0)


def origins(merged: Sequence[tuple[str, str]], folders: list[Path]) -> dict[str, tuple[str, int]]:
    """Map each dotted key to the file and line (from 1) of the value that took precedence.

    Args:
        merged: (config name, package) of each file in merge order; later files take precedence.
        folders: the search path.
    """
    found: dict[str, tuple[str, int]] = {}
    for name, package in merged:
        path = find(name, folders)
        if path is None:
            continue  # a config from Hydra's own package
        shown = display(path)
        package = package.replace("_global_", "").strip(".")
        if package:
            found.setdefault(package, (shown, 1))
        for key, line in _keys(_node(path), package):
            found[key] = (shown, line)
    return found


def read_kind(path: Path) -> str | None:
    """Return the value of the top-level key `kind` of an experiment file, None if it has no such key.

    Raises: ConfigError on YAML that is not a mapping, or a kind that is not one word.
    """
    node = _node(path)
    if node is None:
        return None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{display(path)} has no keys at its top level.")
    _refuse_odd_keys(node, path)
    for key, value in node.value:
        if key.value == "kind":
            if not isinstance(value, yaml.ScalarNode):
                raise ConfigError(f"kind in {display(path)}, line {key.start_mark.line + 1}, is not a name.")
            return str(value.value)
    return None


def _refuse_odd_keys(node: yaml.MappingNode, path: Path) -> None:
    """Raise ConfigError for keys that YAML does not read as text (`on:` is true, `null:` is none)."""
    for key, value in node.value:
        if key.tag != "tag:yaml.org,2002:str":
            kind = key.tag.rpartition(":")[2]
            raise ConfigError(
                f"key '{key.value}' in {display(path)}, line {key.start_mark.line + 1}, has YAML type {kind}.",
                fix=f'write it in quotes: "{key.value}":',
            )
        if isinstance(value, yaml.MappingNode):
            _refuse_odd_keys(value, path)


def _node(path: Path) -> yaml.Node | None:
    try:
        return read_node(path, display(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise unreadable(error, [path]) from error


def unreadable(error: yaml.YAMLError | UnicodeDecodeError, paths: Sequence[Path]) -> ConfigError:
    """Return the error for a file that is not valid YAML, with file and line.

    Args:
        paths: files or folders that contain the file; searched where the error does not name it.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        what = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
        return ConfigError(f"{display(Path(mark.name))} is not readable YAML: {what}, in line {mark.line + 1}.")
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.yaml")))]
    odd = ", ".join(display(file) for file in files if not _is_text(file))
    return ConfigError(
        f"{odd or 'a preset or experiment file'} is not readable YAML: {' '.join(str(error).split())}.",
        fix="save it as UTF-8",
    )


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _keys(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if not at and key.value in ("defaults", "kind"):
            continue
        full = f"{at}.{key.value}" if at else str(key.value)
        yield full, key.start_mark.line + 1
        yield from _keys(value, full)
