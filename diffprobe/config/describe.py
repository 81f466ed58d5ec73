"""Write configurations as YAML, and the reference of all keys from the docstrings below their fields."""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from diffprobe.config.cluster import ClusterConfig
from diffprobe.config.kinds import KINDS, PROBE
from diffprobe.config.parse import describe, to_tree
from diffprobe.core.registry import PROBE_KINDS, probes

_BAR = r"\|"


def render_yaml(config: Any) -> str:
    """Format a config as YAML in the order of its fields; parsing it gives an equal config."""
    text: str = yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=120)
    return text


def render_keys(cls: type[Any], at: str = "") -> str:
    """List every key of `cls` and of its nested blocks: name, type, default, meaning."""
    docs, hints, lines = field_docs(cls), get_type_hints(cls), []
    for spec in dataclasses.fields(cls):
        key, hint = f"{at}{spec.name}", hints[spec.name]
        blocks = [arm for arm in (hint, *get_args(hint)) if dataclasses.is_dataclass(arm)]
        if blocks:
            lines += [f"{key}: {docs[spec.name]}", render_keys(blocks[0], f"{key}.").rstrip("\n")]  # type: ignore[arg-type]
        else:
            meaning = textwrap.indent(textwrap.fill(docs[spec.name], 112), "    ")
            lines += [f"{key}: {describe(hint)}{_default(spec)}", meaning]
    return "\n".join(lines) + "\n"


def render_reference() -> str:
    """Return the reference of all configuration keys as Markdown.

    One section per kind of experiment file (`KINDS`) and per probe (its `Config`), with one table per block of keys:
    name, type, default, allowed values, meaning.
    """
    parts: list[str] = []
    for name, kind in KINDS.items():
        key = "without the key `kind`" if name == PROBE else f"with `kind: {name}`"
        intro = f"An experiment file {key}, run by `diffprobe {kind.verb}`."
        parts += [f"## Kind `{name}`", intro, *_tables(kind.load(), "")]
    parts.append("## Clusters")
    parts.append("A file `configs/cluster/NAME.yaml`, chosen by `diffprobe submit ... cluster=NAME`.")
    parts += _tables(ClusterConfig, "cluster.")
    parts.append("## Keys of the probes")
    parts.append("The keys below `probe.params`, by `probe.kind` and `probe.name`.")
    for (kind_name, name), config in probe_configs().items():
        parts += [f"### `{kind_name}` / `{name}`", *_tables(config, "probe.params.")]
    return "\n\n".join(parts) + "\n"


def probe_configs() -> dict[tuple[str, str], type[Any]]:
    """Return the `Config` of every probe that has one, by (kind, name)."""
    found: dict[tuple[str, str], type[Any]] = {}
    for kind in PROBE_KINDS.names():
        registry = probes(kind)
        for name in registry.names():
            config = getattr(registry.load(name), "Config", None)
            if dataclasses.is_dataclass(config) and isinstance(config, type):
                found[kind, name] = config
    return found


def _tables(cls: type[Any], at: str) -> Iterator[str]:
    """Yield the summary and the table of a dataclass, then those of its nested blocks."""
    yield inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    docs, hints = field_docs(cls), get_type_hints(cls)
    rows: list[list[str]] = []
    nested: list[tuple[str, Any]] = []
    for spec in dataclasses.fields(cls):
        key, hint = f"{at}{spec.name}", hints[spec.name]
        blocks = [arm for arm in (hint, *get_args(hint)) if dataclasses.is_dataclass(arm)]
        nested += [(key, block) for block in blocks[:1]]
        default = _default(spec).removeprefix(" = ").strip()
        default = "required" if default == "(required)" else "" if blocks else f"`{default}`"
        cells = [f"`{key}`", _type_name(hint), default, ", ".join(f"`{value}`" for value in allowed_values(hint))]
        rows.append([*cells, " ".join(docs[spec.name].split())])
    if rows:
        lines = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', _BAR) for cell in row)} |" for row in rows]
        yield "\n".join(lines)
    for key, block in nested:
        yield f"**`{key}`**"
        yield from _tables(block, f"{key}.")


def allowed_values(hint: Any) -> list[str]:
    """List the values that a type enumerates: the choices of a Literal, true and false; empty for open types.

    >>> allowed_values(Literal["raise", "skip"]), allowed_values(bool | None), allowed_values(int)
    (['raise', 'skip'], ['true', 'false', 'null'], [])
    """
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) in (Union, types.UnionType):
        arms = [arm for arm in get_args(hint) if arm is not type(None)]
        values = [value for arm in arms for value in allowed_values(arm)]
        return [*values, *(["null"] if type(None) in get_args(hint) else [])] if values else []
    return []


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(dict.fromkeys(type(choice).__name__ for choice in get_args(hint)))
    return describe(hint)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, inherited fields included; empty where there is none."""
    docs = {spec.name: "" for spec in dataclasses.fields(cls)}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= {name: text for name, text in _own_docs(base).items() if name in docs}
    return docs


def _own_docs(cls: type[Any]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for node, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            docs[node.target.id] = inspect.cleandoc(below.value.value)
    return docs


def _default(spec: dataclasses.Field[Any]) -> str:
    if spec.default is not dataclasses.MISSING:
        return f" = {json.dumps(to_tree(spec.default))}"
    if spec.default_factory is not dataclasses.MISSING:
        return f" = {json.dumps(to_tree(spec.default_factory()))}"
    return " (required)"
