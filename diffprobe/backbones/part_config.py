"""Read the configuration of one part of a checkpoint, reduced to the keys that have an effect.

Networks are built from the dictionary returned here and from nothing else, and the same dictionary is digested: a key
that changes a network changes its digest. Code that comes with a checkpoint is never run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming
from diffprobe.core.json_file import expect, read_json_object

CONFIG = "config.json"
"""Name of the file in a part's folder; schedulers have another one."""
MAX_BYTES = 4 * 2**20
"""Largest configuration that is read, in bytes; real ones have less than 100 kB."""
SAVE_AGAIN = "save it again with save_pretrained(FOLDER), or complete the download: hf download OWNER/NAME"
"""The next step of a user whose checkpoint is incomplete."""


def read_part_config(path: Path, *, non_finite: bool = False) -> dict[str, Any]:
    """Read the configuration of a part, without what has no effect on its network.

    diffusers gives keys listed in `_use_default_values` their defaults, so they are left out. Of the other keys that
    begin with an underscore only `_class_name` stays, the name of the diffusers class; `attention` backends, paths and
    versions are not taken from a file.

    Args:
        path: the JSON file.
        non_finite: take NaN and Infinity; diffusers writes them in configurations of schedulers.
    Raises: WeightsMissing without the file; WeightsMismatch if it is not a JSON object, or if it needs code of its own
        or a quantisation.
    """
    if not path.exists():
        raise WeightsMissing(
            f"'{path.parent}' has no {path.name}, so its network is unknown.", f"looked for: {path}", fix=SAVE_AGAIN
        )
    found = read_json_object(path, error=WeightsMismatch, fix=SAVE_AGAIN, max_bytes=MAX_BYTES, non_finite=non_finite)
    with naming(path, "text in Unicode"):
        json.dumps(found, ensure_ascii=False).encode()  # digests are of its bytes
    refuse_foreign_code(found, path)
    if found.get("quantization_config") is not None:
        raise WeightsMismatch(
            f"'{path}' has a quantization_config; quantised weights are not read.",
            fix="name the checkpoint that was not quantised, and set backbone.dtype=bfloat16",
        )
    defaults = found.get("_use_default_values", [])
    if not isinstance(defaults, list) or not all(isinstance(key, str) for key in defaults):
        raise WeightsMismatch(f"'{path}': _use_default_values is not a list of keys.", f"found: {str(defaults)[:80]}")
    return {
        key: value
        for key, value in found.items()
        if key not in defaults and (key == "_class_name" or not key.startswith("_"))
    }


def network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a network is built from and what is digested: `config` without class name and writer's version."""
    return {key: value for key, value in config.items() if key not in ("_class_name", "transformers_version")}


def refuse_foreign_code(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration that names code of its own. Raises: WeightsMismatch."""
    kind = config.get("_class_name")
    if kind is not None and not isinstance(kind, str):
        raise WeightsMismatch(
            f"'{path}': _class_name is not the name of a class of diffusers, but {str(kind)[:80]}.",
            "a list there means code that comes with the checkpoint, which is never run",
        )
    if config.get("auto_map") is not None:
        raise WeightsMismatch(
            f"'{path}' has an auto_map: code that comes with the checkpoint, which is never run.",
            fix="name a checkpoint whose parts are classes of diffusers and transformers",
        )


def read_model_index(path: Path) -> dict[str, Any]:
    """Read the `model_index.json` of a pipeline.

    Raises: WeightsMismatch if it is not a JSON object with the name of a pipeline class, or if an entry that names a
        part is not [library, class].
    """
    index = read_json_object(path, error=WeightsMismatch, fix=SAVE_AGAIN, max_bytes=MAX_BYTES)
    refuse_foreign_code(index, path)
    expect(index.get("_class_name"), str, where=f"'{path}': _class_name", error=WeightsMismatch)
    for part, entry in index.items():
        if isinstance(entry, list) and not part.startswith("_"):
            if len(entry) != 2 or not all(name is None or isinstance(name, str) for name in entry):
                raise WeightsMismatch(f"'{path}': the entry of '{part}' is not [library, class]: {str(entry)[:80]}.")
    return index


def has_part(index: Mapping[str, Any], part: str) -> bool:
    """Return whether a pipeline has a part, by its `model_index.json`: an entry without null."""
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) == 2 and all(entry)


def part_names(index: Mapping[str, Any]) -> list[str]:
    """List the parts of a pipeline, in the order of its `model_index.json`."""
    return [name for name in index if has_part(index, name)]


def positive(config: Mapping[str, Any], key: str, default: int, *, where: Path | str) -> int:
    """Return a whole number of at least 1 (and at most 2^31) from a configuration. Raises: WeightsMismatch."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**31:
        raise WeightsMismatch(f"'{where}': {key} is {str(value)[:80]}.", "allowed: a whole number of at least 1")
    return value
