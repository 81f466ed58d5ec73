"""Configurations for people: as YAML, and as a list of keys whose help texts are the docstrings below the fields."""

import ast
import dataclasses
import inspect
import json
import textwrap
from typing import Any, get_args, get_type_hints

import yaml

from diffprobe.config.parse import describe, to_tree


def render_yaml(config: Any) -> str:
    """Write a config as YAML in the order of its fields; reading it back gives an equal config."""
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


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a dataclass; an empty text where there is none."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {spec.name: "" for spec in dataclasses.fields(cls)}
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
