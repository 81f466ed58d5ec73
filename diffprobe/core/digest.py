"""Digests of settings and files. Paths, hosts and dates must not be part of digested settings."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from diffprobe.core.patience import short_read


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises: ValueError on NaN or infinity, TypeError on types that JSON does not have.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """Return the sha256 (64 hex digits) of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path | str) -> str:
    """Return the sha256 (64 hex digits) of a file's bytes, read in blocks.

    Raises: OSError; EIO where the file ends before its size, as that of a vanished network file system may.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if file.tell() < size:
            raise short_read(file.tell(), size)
    return digest


def digest_file_once(path: Path | str) -> str:
    """Return the sha256 of a file; a file with the same inode, size and times is read once per process."""
    path = Path(path)
    stat = path.stat()
    return _digest_once(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _digest_once(path: Path, *identity: int) -> str:
    return digest_file(path)
