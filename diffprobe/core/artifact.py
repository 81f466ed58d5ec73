"""JSON files that say what they are. Owns the header, atomic writing and the refusal of foreign files.

An artifact is one JSON object with the key ``header``: kind, schema version, what made it, the digest of its content
and the digests of its inputs. Standard library only; tensors lie beside it in safetensors files.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffprobe import __version__
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import NonFinite, SchemaError

HEADER = "header"


def make_header(
    kind: str, schema_version: int, *, digest: str | None = None, inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Make the header of an artifact.

    Args:
        kind: what the file is, for example "result" or "store".
        schema_version: raised whenever an older reader would misread the file.
        digest: sha256 of the content, where the content is named by its digest.
        inputs: name -> sha256 of everything the artifact was made from.
    """
    return {
        "kind": kind,
        "schema_version": schema_version,
        "made_by": f"diffprobe {__version__}",
        "digest": digest,
        "inputs": dict(inputs or {}),
    }


def dump_json(obj: Any, *, where: str = "the artifact") -> str:
    """Write `obj` as JSON for people: sorted keys, indented, one newline at the end; equal values give equal text.

    Raises: NonFinite on NaN or infinity, which JSON cannot hold.
    """
    try:
        return json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise NonFinite(f"{where} holds a number that JSON cannot hold: {error}.", *_non_finite(obj)) from error


def write_json_atomic(path: Path | str, obj: Any) -> None:
    """Write `obj` as JSON under a temporary name, then rename it, so that no reader ever sees half a file.

    Raises: NonFinite on NaN or infinity; nothing is written then.
    """
    path = Path(path)
    text = dump_json(obj, where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        open_to_readers(temporary)  # mkstemp too makes files that only the owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_artifact(
    path: Path | str,
    body: Mapping[str, Any],
    *,
    kind: str,
    schema_version: int,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Write `body` with a header whose digest is the digest of `body`."""
    try:
        digest = digest_json(dict(body))
    except ValueError as error:
        raise NonFinite(f"{path} would hold a number that JSON cannot hold: {error}.", *_non_finite(body)) from error
    header = make_header(kind, schema_version, digest=digest, inputs=inputs)
    write_json_atomic(path, {HEADER: header, **body})


def read_json(
    path: Path | str,
    *,
    kind: str,
    schema_version: int,
    remake: str | Callable[[dict[str, Any]], str] = "make the file again with this version",
) -> dict[str, Any]:
    """Read an artifact and check its header.

    Args:
        path: the file.
        kind: what it must be.
        schema_version: the only version that is read.
        remake: the way to a file of this version, for the message about an older one: a text, or a function of the
            old content.

    Returns: the whole object, header included.
    Raises: SchemaError if the file is no JSON, of another kind, or of a schema version this code does not read.
    """
    path = Path(path)
    try:
        obj = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SchemaError(
            f"'{path}' is not a readable JSON file: {error}.", f"expected: an artifact '{kind}'"
        ) from error
    header = obj.get(HEADER) if isinstance(obj, dict) else None
    if not isinstance(header, dict) or "kind" not in header:
        raise SchemaError(f"'{path}' has no artifact header.", f"expected: an artifact '{kind}' written by diffprobe")
    if header["kind"] != kind:
        raise SchemaError(f"'{path}' is an artifact '{header['kind']}', expected '{kind}'.")
    found = header.get("schema_version")
    if found != schema_version:
        newer = isinstance(found, int) and found > schema_version
        raise SchemaError(
            f"'{path}' has schema version {found} of '{kind}', this code reads {schema_version}.",
            f"it was made by: {header.get('made_by', 'unknown')}; this is diffprobe {__version__}",
            fix="update diffprobe" if newer else remake if isinstance(remake, str) else remake(obj),
        )
    return dict(obj)


def open_to_readers(path: Path | str) -> None:
    """Give a file, or every file below a folder, the rights that new files have here (umask).

    For what libraries write that only the owner can read (safetensors): colleagues share these folders.
    """
    path, mode = Path(path), 0o666 & ~_umask()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            os.chmod(file, mode)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _non_finite(obj: Any, at: str = "") -> list[str]:
    """List the paths of NaN and infinity in `obj`, for the message."""
    if isinstance(obj, float) and (obj != obj or obj in (float("inf"), float("-inf"))):
        return [f"{at or 'value'} = {obj}"]
    if isinstance(obj, Mapping):
        return [line for key, value in obj.items() for line in _non_finite(value, f"{at}.{key}".lstrip("."))]
    if isinstance(obj, (list, tuple)):
        return [line for i, value in enumerate(obj) for line in _non_finite(value, f"{at}[{i}]")]
    return []
