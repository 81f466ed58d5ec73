"""Finished measurements as lines of a JSON file, so that a benchmark that was stopped continues after them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffprobe.core.digest import digest_json


class KeptLines:
    """Measurements by what identifies them; a line holds the digest of that, and the measurement.

    Lines of other keys stay and are not read. A last line without its end, as after a full disk, counts as missing.

    Args:
        file: of the lines; made when the first one is added. None to keep nothing.
        identity: a part of every key, as JSON can hold it.
    """

    def __init__(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        self._file, self._identity = file, dict(identity)

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the measurement of a key, the last one if there are several; None if there is none."""
        if self._file is None or not self._file.is_file():
            return None
        digest, found = self._digest(key), None
        for line in self._file.read_text("utf-8").splitlines():
            try:
                tree = json.loads(line)
            except ValueError:
                continue
            if isinstance(tree, dict) and tree.get("digest") == digest and isinstance(tree.get("found"), dict):
                found = tree["found"]
        return found

    def add(self, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Add a measurement as a line. Raises: OSError."""
        if self._file is None:
            return
        line = json.dumps({"digest": self._digest(key), "found": dict(found)}, allow_nan=False)
        with self._file.open("a+b") as lines:
            if lines.tell() > 0:
                lines.seek(-1, 2)
                if lines.read(1) != b"\n":
                    lines.write(b"\n")
            lines.write(line.encode() + b"\n")

    def _digest(self, key: Mapping[str, Any]) -> str:
        return digest_json({**self._identity, **key})
