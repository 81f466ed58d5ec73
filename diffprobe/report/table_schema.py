"""The JSON schema of `table.yaml`, made from the typed spec: editors complete keys with it and mark what is wrong.

The schema is shipped as `table.schema.json` beside this file. What only a filled table shows (a field that no result
has, a published number of no entry) is refused by `diffprobe table`, not by the schema.
"""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffprobe.config.describe import field_docs
from diffprobe.config.parse import to_tree
from diffprobe.report.query import NAMES
from diffprobe.report.table_spec import (
    MAX_DECIMALS,
    MAX_DRAWS,
    MAX_TABLES,
    Marks,
    NumberFormat,
    Published,
    TableAxis,
    TableSpec,
)

SCHEMA_FILE = Path(__file__).with_name("table.schema.json")
"""The shipped schema."""
_FIELD: dict[str, Any] = {"anyOf": [{"enum": list(NAMES)}, {"type": "string", "pattern": r"^config\.[^.]"}]}
_LIMITS: dict[tuple[type, str], dict[str, Any]] = {
    (TableAxis, "field"): _FIELD,
    (TableSpec, "filter"): {"propertyNames": _FIELD},
    (TableSpec, "rows"): {"minItems": 1},
    (NumberFormat, "decimals"): {"minimum": 0, "maximum": MAX_DECIMALS},
    (NumberFormat, "scale"): {"not": {"const": 0}},
    (Marks, "level"): {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    (Marks, "rate"): {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    (Marks, "resamples"): {"minimum": 1, "maximum": MAX_DRAWS},
    (Marks, "permutations"): {"minimum": 1, "maximum": MAX_DRAWS},
    (Marks, "seed"): {"minimum": 0},
    (Published, "tolerance"): {"minimum": 0},
    (Published, "where"): {"propertyNames": _FIELD},
}
"""What the types do not show but the parser requires."""
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def table_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a `table.yaml`: one table, or `tables` that share the other keys."""
    table = _object(TableSpec)
    required = table.pop("required")
    tables = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_TABLES,
        "description": "Several tables, in order. The other keys of the file apply to each; its own come first.",
        "items": {**table, "description": "The keys in which one table differs from the rest of the file."},
    }
    in_each = [
        {"anyOf": [{"required": [key]}, {"properties": {"tables": {"items": {"required": [key]}}}}]} for key in required
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "table.yaml of diffprobe",
        **table,
        "properties": {**table["properties"], "tables": tables},
        "if": {"required": ["tables"]},
        "then": {"allOf": in_each},
        "else": {"required": required},
    }


def schema_text() -> str:
    """Return the schema as JSON text, as it is shipped."""
    return json.dumps(table_schema(), indent=2, ensure_ascii=False) + "\n"


def _object(cls: type[Any]) -> dict[str, Any]:
    """Return the schema of a dataclass, each key with the docstring below it."""
    docs, hints = field_docs(cls), get_type_hints(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        entry = _value(hints[field.name])
        text = " ".join(docs[field.name].split())
        known: dict[str, Any] = {"description": text} if text else {}
        if field.default is not dataclasses.MISSING:
            known["default"] = to_tree(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = {**known, **entry, **_LIMITS.get((cls, field.name), {})}
    found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _value(hint: Any) -> dict[str, Any]:
    """Return the schema of a type, as `config.parse` accepts it. Raises: TypeError for a type that it does not know."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin in (Union, types.UnionType):
        return {"type": sorted({_SCALARS[arm] for arm in args} - ({"integer"} if float in args else set()))}
    if origin is Literal:
        return {"enum": list(args)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _object(hint)
    if origin is tuple and args[1:] == (Ellipsis,):
        return {"type": "array", "items": _value(args[0])}
    if origin is dict:
        item = _value(args[1])
        return {"type": "object", **({"additionalProperties": item} if item else {})}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    raise TypeError(f"no JSON schema for the type {hint}")
