"""Editing of artifacts as another program would: with a digest that fits, so that what is inside is tested."""

import json
from pathlib import Path
from typing import Any

from diffprobe.core.artifact import HEADER
from diffprobe.core.digest import digest_json


def seal(tree: dict[str, Any]) -> dict[str, Any]:
    """Return an artifact with the digest of its content in its header; for results, those of config and inputs too."""
    body = {key: value for key, value in tree.items() if key != HEADER}
    header = dict(tree[HEADER])
    if header.get("kind") == "result":
        if isinstance(body.get("config"), dict):
            body["config_digest"] = digest_json(body["config"])
        header["inputs"] = body.get("artifacts")
    return {HEADER: {**header, "digest": digest_json(body)}, **body}


def edit(path: Path, **changes: object) -> None:
    """Replace keys of an artifact (`...` removes one) and seal it again."""
    tree = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in tree.items() if value is not ...}
    path.write_text(json.dumps(seal(kept)), encoding="utf-8")
