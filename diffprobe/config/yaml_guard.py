"""Read YAML that others wrote, before Hydra does: bounded in size, depth and aliases, and without resolvers.

A resolver (`${oc.env:NAME}`, `${hydra:...}`) puts facts of the machine, such as a secret in an environment variable,
into configurations, which are stored in results and sent to trackers. Plain interpolation (`${seed}`) stays.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from diffprobe.config import search_path
from diffprobe.core.errors import ConfigError

MAX_BYTES = 2**18
"""Largest preset, experiment file or table, in bytes; the shipped ones have less than 10 kB."""
MAX_NODES = 20_000
"""Most values of a file, with its aliases expanded, and most characters that interpolations insert."""
MAX_DEPTH = 32
"""Deepest nesting of a file."""
_MAX_NUMBER = 100
"""Longest number in characters; Python refuses to read integers of more than 4,300 digits."""
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_TAGS.add("tag:yaml.org,2002:timestamp")  # a plain date, which OmegaConf reads as text
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads in base 8 or 60: 010 is 8, and 1:30 is 90."""
_NAME = re.compile(r"\$\{([^{}]*)\}")
_HYDRAS_GROUP = re.compile(r"((override |optional )+/?|/)hydra(/|$)")
"""Entries of a defaults list that choose settings of Hydra; a group below one's own folder `hydra` is another."""


def read_node(path: Path, shown: str) -> yaml.Node | None:
    """Read a YAML file as nodes, which have line numbers.

    Args:
        path: a regular file.
        shown: its name in messages.

    Raises: yaml.YAMLError and UnicodeDecodeError for a file that is not YAML; ConfigError for one that is too large or
        too deep, whose aliases expand to too many values, or that has a type of Python.
    """
    check_file(path, shown)
    try:
        with open(path, encoding="utf-8") as file:
            node = yaml.compose(file, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise ConfigError(f"{shown} is nested too deeply.") from error
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise ConfigError(f"{shown} is not readable YAML: {error}.") from error
    if node is not None:
        _measure(node, shown, {}, set(), 1)
    return node


def check_file(path: Path, shown: str) -> None:
    """Check that a path is a regular file of at most `MAX_BYTES`. Raises: ConfigError, which calls it `shown`."""
    if not path.is_file():
        raise ConfigError(f"{shown} is not a regular file.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"{shown} has {path.stat().st_size:,} bytes, more than a configuration may have ({MAX_BYTES:,})."
        )


def refuse_resolvers(text: str, where: str) -> None:
    """Raise ConfigError for a text with an interpolation that names a resolver: a colon within `${...}`.

    >>> refuse_resolvers("seed=${data.limit}: a", "on the command line")
    >>> refuse_resolvers("output=${oc.env:HOME}", "on the command line")
    Traceback (most recent call last):
    ...
    diffprobe.core.errors.ConfigError: output=${oc.env:HOME} on the command line uses a resolver, which is refused.
      fix: write the value itself, or let the shell insert it
    """
    depth = 0
    for place, character in enumerate(text):
        if text.startswith("${", place):
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == ":" and depth:
            raise ConfigError(
                f"{text[:80]} {where} uses a resolver, which is refused.",
                fix="write the value itself, or let the shell insert it",
            )


def guard_files(names: Collection[str], folders: list[Path], chosen: Mapping[str, str]) -> None:
    """Check the files that Hydra will merge, before it reads them: the given ones and those in their defaults lists.

    Args:
        names: names of the files, without suffix, below one of `folders`.
        folders: the search path.
        chosen: group -> choice of the command line; other choices of these groups are not read.

    Raises: see `read_node`; ConfigError for a resolver, or an interpolation in a defaults list.
    """
    waiting, seen = list(names), set(names)
    while waiting:
        name = waiting.pop()
        path = search_path.find(name, folders)
        if path is None:
            continue  # Hydra names what is missing
        node = read_node(path, search_path.display(path))
        if node is None:
            continue
        for scalar in _scalars(node, set()):
            refuse_resolvers(scalar.value, f"in {search_path.display(path)}, line {scalar.start_mark.line + 1},")
        for group, choice in _defaults(node, name, search_path.display(path)):
            if chosen.get(group, choice) == choice and (found := f"{group}/{choice}".lstrip("/")) not in seen:
                seen.add(found)
                waiting.append(found)


def check_interpolations(tree: Any) -> None:
    """Check a merged tree before its interpolations are resolved: no resolver, no nesting, and a bounded result.

    Raises: ConfigError.
    """
    inserted = 0
    for text in _texts(tree):
        refuse_resolvers(text, "in the configuration")
        for name in _NAME.findall(text):
            if not name or name.startswith(".") or "${" in (target := str(_lookup(tree, name))):
                raise ConfigError(
                    f"{text[:80]} in the configuration interpolates a relative or interpolated value.",
                    fix="write the value itself",
                )
            inserted += len(target)
        if text.count("${") != len(_NAME.findall(text)):
            raise ConfigError(
                f"{text[:80]} in the configuration has a nested interpolation.", fix="write the value itself"
            )
    if inserted > MAX_NODES:
        raise ConfigError(f"interpolations insert {inserted:,} characters, more than {MAX_NODES:,}.")


def _measure(node: yaml.Node, shown: str, known: dict[int, int], open_: set[int], depth: int) -> int:
    """Return the number of values below a node, aliases expanded. Raises: ConfigError."""
    line = f"{shown}, line {node.start_mark.line + 1}"
    if id(node) in open_:
        raise ConfigError(f"{line}: an alias contains itself.")
    if depth > MAX_DEPTH:
        raise ConfigError(f"{line}: nested deeper than {MAX_DEPTH} levels.")
    if node.tag not in _TAGS:
        raise ConfigError(
            f"{line}: the tag {node.tag[:80]} is not allowed in configurations.", fix="write a plain value"
        )
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _MAX_NUMBER and not node.tag.endswith(":str"):
            raise ConfigError(f"{line}: a number of {len(node.value):,} characters.")
        if _OTHER_BASE.fullmatch(node.value) and node.tag.endswith((":int", ":float")):
            raise ConfigError(
                f"{line}: YAML reads {node.value} as a number of another base (8 or 60).",
                fix="write the number without leading zeros and colons, or a text in quotes",
            )
        return 1
    if id(node) not in known:
        open_.add(id(node))
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_measure(child, shown, known, open_, depth + 1) for child in children)
        open_.discard(id(node))
    if known[id(node)] > MAX_NODES:
        raise ConfigError(
            f"{line}: it has {known[id(node)]:,} values with its aliases expanded, more than {MAX_NODES:,}."
        )
    return known[id(node)]


def _scalars(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                yield from _scalars(part, seen)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _scalars(part, seen)


def _defaults(node: yaml.Node, name: str, shown: str) -> Iterator[tuple[str, str]]:
    """Yield (group, choice) of each entry of a defaults list. Raises: ConfigError for interpolations and `hydra`."""
    lists = [value for key, value in _pairs(node) if key.value == "defaults" and isinstance(value, yaml.SequenceNode)]
    for entry in (entry for found in lists for entry in found.value):
        pairs = [(key.value, value) for key, value in _pairs(entry)] or [("", entry)]
        for key, value in pairs:
            for choice in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(choice, yaml.ScalarNode) or choice.value in ("_self_", "null", ""):
                    continue
                if "${" in choice.value or "${" in str(key):
                    raise ConfigError(
                        f"{choice.value[:80]} in the defaults of {shown} is an interpolation.",
                        fix="write the name itself",
                    )
                words = f"{key}/{choice.value}" if key else choice.value
                if _HYDRAS_GROUP.match(words):
                    raise ConfigError(
                        f"'{words[:80]}' in the defaults of {shown}: settings of Hydra have no effect.",
                        "diffprobe only merges configurations with it",
                        fix="remove that entry",
                    )
                yield _place(words, name)


def _place(words: str, name: str) -> tuple[str, str]:
    """Return the group and the choice of an entry: `/data/x`, `override /data/x`, `data/x`, `/data/x@package`."""
    for prefix in ("override ", "optional ", "override "):
        words = words.removeprefix(prefix)
    group, _, chosen = re.sub(r"@[^/]*", "", words).rpartition("/")
    if group.startswith("/") or words.startswith("/"):
        return group.strip("/"), chosen
    return "/".join(filter(None, (name.rpartition("/")[0], group))), chosen


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        if "${" in tree:
            yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)


def _lookup(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part, "") if isinstance(tree, Mapping) else ""
    return tree
