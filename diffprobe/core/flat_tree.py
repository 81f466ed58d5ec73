"""Nested configurations as dotted key -> value. Standard library only."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return a tree as dotted key -> value; an empty block is a value.

    >>> flatten({"data": {"path": "shards", "limit": None}, "params": {}})
    {'data.path': 'shards', 'data.limit': None, 'params': {}}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        full = f"{at}.{key}" if at else key
        flat.update(flatten(value, full) if isinstance(value, dict) and value else {full: value})
    return flat
