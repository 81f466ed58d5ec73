"""Save and load probes: a folder with `probe.json` (header and settings) and `probe.safetensors`, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import SchemaError, WeightsMissing

SETTINGS, TENSORS = "probe.json", "probe.safetensors"


def save_probe(
    folder: Path | str, *, kind: str, schema_version: int, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write a probe: the tensors first, then the settings with their checksum, so that a partial write never loads.

    Args:
        folder: where to write; created if it does not exist.
        kind: what the probe is, for example "probe/sae/topk".
        schema_version: version of the layout of settings and tensors.
        settings: what JSON can hold.
        tensors: name -> tensor.

    Returns: the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / TENSORS) as temporary:
        save_tensors(tensors, temporary)
        digest = digest_file(temporary)
    body = {"settings": dict(settings)}
    write_artifact(folder / SETTINGS, body, kind=kind, schema_version=schema_version, inputs={TENSORS: digest})
    return folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Write tensors to a safetensors file. Raises: OSError where it cannot be written, for example on a full disk."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"'{path}' cannot be written: {error}") from error


def kind_of(folder: Path | str) -> str:
    """Return what the probe in a folder is, for example "probe/sae/topk". Raises: WeightsMissing, SchemaError."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise WeightsMissing(f"no saved probe in '{folder}'.", f"looked for: {SETTINGS}")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[HEADER]["kind"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise SchemaError(f"'{path}' is not the settings file of a probe: {error!r}.") from error


def load_probe(folder: Path | str, *, kind: str, schema_version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_probe` wrote.

    Returns: settings and tensors (on the CPU).
    Raises: SchemaError for another kind or schema version, or if the tensors changed since they were saved.
    """
    folder = Path(folder)
    head = read_json(
        folder / SETTINGS, kind=kind, schema_version=schema_version, remake="train it again: diffprobe train"
    )
    saved = head["header"]["inputs"].get(TENSORS)
    found = digest_file(folder / TENSORS)
    if saved != found:
        raise SchemaError(f"'{folder / TENSORS}' is not the file that was saved.", f"sha256: saved {saved}, is {found}")
    try:
        return head["settings"], load_file(folder / TENSORS)
    except SafetensorError as error:
        raise SchemaError(f"'{folder / TENSORS}' is not a readable safetensors file: {error}.") from error
