"""Artifacts: JSON files with a header, written atomically and validated when they are read.

An artifact is one JSON object with the key ``header``: kind, schema version, the package version that wrote it, the
digest of its content and the digests of its inputs. Whenever an artifact is read, its content is compared with its
digest. Standard library only; tensors are in separate safetensors files.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffprobe import __version__
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import NonFinite, SchemaError
from diffprobe.core.json_file import read_json_file

HEADER = "header"


def make_header(
    kind: str, schema_version: int, *, digest: str | None = None, inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the header of an artifact.

    Args:
        kind: kind of the file, for example "result" or "store".
        schema_version: increased when an older reader would misread the file.
        digest: sha256 of the content.
        inputs: name -> sha256 of each input.
    """
    return {
        "kind": kind,
        "schema_version": schema_version,
        "made_by": f"diffprobe {__version__}",
        "digest": digest,
        "inputs": dict(inputs or {}),
    }


def dump_json(obj: Any, *, where: str = "the artifact") -> str:
    """Return `obj` as indented JSON with sorted keys and a final newline; equal values give equal text.

    Raises: NonFinite on NaN or infinity, which JSON does not have.
    """
    try:
        return json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise NonFinite(f"{where} has a number that JSON does not have: {error}.", *_non_finite(obj)) from error


def write_json_atomic(path: Path | str, obj: Any) -> None:
    """Write `obj` as JSON under a temporary name, then rename the file, so that readers never see a partial file.

    Raises: NonFinite on NaN or infinity, before anything is written.
    """
    text = dump_json(obj, where=str(path))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_artifact(
    path: Path | str,
    body: Mapping[str, Any],
    *,
    kind: str,
    schema_version: int,
    inputs: Mapping[str, str] | None = None,
    made_by: str | None = None,
) -> None:
    """Write `body` with a header that has the digest of `body`, which `read_json` compares.

    Args:
        made_by: who wrote it, where equal content has to give equal bytes; this version of the package if None.

    Raises: NonFinite on NaN or infinity, SchemaError on text that is not Unicode, before anything is written.
    """
    try:
        plain = json.loads(canonical_json(dict(body)))  # as after reading: keys are text, tuples are lists
        digest = digest_json(plain)
    except UnicodeEncodeError as error:
        raise SchemaError(f"{path}: the content has text that is not Unicode: {error.object[:80]!r}.") from error
    except ValueError as error:
        raise NonFinite(
            f"{path}: the content has a number that JSON does not have: {error}.", *_non_finite(body)
        ) from error
    header = make_header(kind, schema_version, digest=digest, inputs=inputs)
    if made_by is not None:
        header["made_by"] = made_by
    write_json_atomic(path, {HEADER: header, **plain})


def read_json(
    path: Path | str,
    *,
    kind: str,
    schema_version: int,
    remake: str | Callable[[dict[str, Any]], str] = "create the file again with this version",
) -> dict[str, Any]:
    """Read an artifact, validate its header, and compare its content with the digest in the header.

    The digest shows a file that was edited or damaged. It is not a signature: who writes the file can write both.

    Args:
        path: the file.
        kind: the expected kind.
        schema_version: the only version that is read.
        remake: fix for a file of an older version or a modified one, for the error message: a text, or a function of
            the content.

    Returns: the whole object, header included.

    Raises: SchemaError if the file is not JSON, has another kind or schema version, or was modified after it was
        written; FileNotFoundError.
    """
    obj = read_json_file(path)
    header = obj.get(HEADER) if isinstance(obj, dict) else None
    if not isinstance(header, dict) or "kind" not in header:
        raise SchemaError(f"'{path}' has no artifact header.", f"expected: an artifact '{kind}' written by diffprobe")
    if header["kind"] != kind:
        raise SchemaError(f"'{path}' is an artifact '{header['kind']}', expected '{kind}'.")
    found = header.get("schema_version")
    again = remake if isinstance(remake, str) else remake(obj)
    if found != schema_version or isinstance(found, bool):
        newer = isinstance(found, int) and found > schema_version
        raise SchemaError(
            f"'{path}' has schema version {found} of '{kind}', expected {schema_version}.",
            f"written by {header.get('made_by', 'an unknown version')}; this is diffprobe {__version__}",
            fix="update diffprobe" if newer else again,
        )
    body = {key: value for key, value in obj.items() if key != HEADER}
    try:
        digest = digest_json(body)
    except UnicodeEncodeError as error:
        raise SchemaError(f"'{path}' has text that is not Unicode: {error.object[:80]!r}.", fix=again) from error
    if header.get("digest") != digest:
        raise SchemaError(
            f"'{path}' was modified after it was written.",
            f"sha256 of its content: {digest}, in its header: {header.get('digest')}",
            fix=f"restore the file; or {again}",
        )
    return dict(obj)


def _non_finite(obj: Any, at: str = "") -> list[str]:
    """List the paths of NaN and infinity in `obj`."""
    if isinstance(obj, float) and (obj != obj or obj in (float("inf"), float("-inf"))):
        return [f"{at or 'value'} = {obj}"]
    if isinstance(obj, Mapping):
        return [line for key, value in obj.items() for line in _non_finite(value, f"{at}.{key}".lstrip("."))]
    if isinstance(obj, (list, tuple)):
        return [line for i, value in enumerate(obj) for line in _non_finite(value, f"{at}[{i}]")]
    return []
