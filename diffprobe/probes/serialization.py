"""Save and load probes: a folder with `probe.json` (header and settings) and `probe.safetensors`, without pickle."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.core.json_file import read_json_file
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.core.safetensors_writer import Layout, write_safetensors

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
    return _save(folder, lambda path: save_tensors(tensors, path), kind, schema_version, settings)


def save_probe_in_parts(
    folder: Path | str,
    *,
    kind: str,
    schema_version: int,
    settings: Mapping[str, Any],
    layout: Layout,
    parts: Callable[[str], Iterable[Tensor]],
) -> Path:
    """Write a probe as `save_probe` does, from tensors that are nowhere whole.

    Args:
        layout, parts: see `write_safetensors`.

    Raises: RunFailed if the parts do not fit the layout.
    """
    return _save(folder, lambda path: write_safetensors(path, layout, parts), kind, schema_version, settings)


def _save(
    folder: Path | str, write: Callable[[Path], None], kind: str, schema_version: int, settings: Mapping[str, Any]
) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / TENSORS) as temporary:
        write(temporary)
        digest = digest_file(temporary)
    body = {"settings": dict(settings)}
    write_artifact(folder / SETTINGS, body, kind=kind, schema_version=schema_version, inputs={TENSORS: digest})
    return folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file. Raises: OSError where it cannot be written, for example on a full disk.

    Args:
        metadata: texts of its header.
    """
    try:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(f"'{path}' cannot be written: {error}") from error


def kind_of(folder: Path | str) -> str:
    """Return what the probe in a folder is, for example "probe/sae/topk". Raises: WeightsMissing, SchemaError."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise WeightsMissing(f"no saved probe in '{folder}'.", f"looked for: {SETTINGS}")
    found = read_json_file(path)
    header = found.get(HEADER) if isinstance(found, dict) else None
    kind = header.get("kind") if isinstance(header, dict) else None
    if not isinstance(kind, str):
        raise SchemaError(f"'{path}' is not the settings file of a probe: it has no {HEADER} with a kind.")
    return kind


def load_probe(folder: Path | str, *, kind: str, schema_version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_probe` wrote.

    Returns: settings and tensors (on the CPU).
    Raises: WeightsMissing without either file; SchemaError for another kind or schema version, for files that cannot be
        read, and if settings or tensors changed since they were saved.
    """
    folder = Path(folder)
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise WeightsMissing(f"no saved probe in '{folder}'.", f"looked for: {name}")
    head = read_json(
        folder / SETTINGS, kind=kind, schema_version=schema_version, remake="train it again: diffprobe train"
    )
    header, settings = head[HEADER], head.get("settings")
    if not isinstance(settings, dict) or not isinstance(header.get("inputs"), dict):
        raise SchemaError(f"'{folder / SETTINGS}' has no settings, or no checksum of its tensors.")
    saved, found = header["inputs"].get(TENSORS), digest_file(folder / TENSORS)
    if saved != found:
        raise SchemaError(f"'{folder / TENSORS}' is not the file that was saved.", f"sha256: saved {saved}, is {found}")
    return settings, load_safetensors(folder / TENSORS)


def require_sizes(folder: Path | str, tensors: Mapping[str, Tensor], **sizes: object) -> None:
    """Check sizes in the settings of a probe against its tensors, before anything of these sizes is made.

    Raises: WeightsMismatch for a size that is not a whole number, or that no tensor has.
    """
    known = {side for tensor in tensors.values() for side in tensor.shape}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size not in known:
            raise WeightsMismatch(
                f"'{Path(folder) / SETTINGS}': {name} is {str(size)[:80]}, which no tensor in {TENSORS} has.",
                fix="train the probe again",
            )
