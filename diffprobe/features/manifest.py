"""What fixes the content of a store, and its digest. Owns the rule when a feature store may serve a request.

There are two kinds: feature stores, and stores of the VAE's latents (latents.py), which have the same form.

Digested: the backbone's fingerprint, the cells, the shards taken (by checksum), the fields read, and the number format.
Recorded only: names, class lists and library versions, which follow from the former or may differ between machines.
No path, host or date enters either. No torch is needed to read a manifest.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import ConfigError, SchemaError

FEATURES, LATENTS = "feature_store", "latent_store"
SHARD_KINDS = {FEATURES: "feature_shard", LATENTS: "latent_shard"}
"""Kind of a store -> kind of the `samples.json` of its shards."""
TENSORS = {FEATURES: "features", LATENTS: "vae_latents"}
"""Kind of a store -> name of the tensor in its safetensors files."""
SCHEMA_VERSION = 3
# A backbone gives the same values for a cell whichever other cells are read with it, so a store with more is as good.
_PER_CELL = frozenset({"cells", "taps", "timesteps"})


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One source shard: `n` samples are taken, the first ones; `sha256` is that of the shard file."""

    file: str
    split: str
    n: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity of a store.

    Attributes:
        backbone: `DiffusionFeatures.fingerprint`: weights, taps, timesteps, conditions, pool, draws, seed, resolution;
            for latents what fixes the VAE's output.
        cells: cell name -> width (`d_in`; channels when `pool=none`); for latents the one name `vae_latents`.
        data: digest of the shard set (`shard_set`), field names, and how faults are treated.
        shards: the source shards in order, split by split.
        dtype: number format of the stored features.
        recorded: names, classes, attribute values, versions; not part of the digest.
        kind: FEATURES or LATENTS.
    """

    backbone: dict[str, Any]
    cells: dict[str, int]
    data: dict[str, Any]
    shards: tuple[ShardEntry, ...]
    dtype: str = "float32"
    recorded: dict[str, Any] = field(default_factory=dict)
    kind: str = FEATURES

    def __post_init__(self) -> None:
        for name in ("backbone", "data", "recorded"):  # tuples become lists now, not only after the first reading
            object.__setattr__(self, name, json.loads(canonical_json(getattr(self, name))))
        files = [cell_file(cell) for cell in self.cells]
        if len(set(files)) < len(files):
            raise ConfigError("two cells would share one file in the store.", f"cells: {', '.join(self.cells)}")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order of the shards."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    def content(self) -> dict[str, Any]:
        """Return everything that is digested, as JSON-able values."""
        return {
            "kind": self.kind,
            "schema_version": SCHEMA_VERSION,
            "backbone": self.backbone,
            "cells": self.cells,
            "data": self.data,
            "shards": [asdict(shard) for shard in self.shards],
            "dtype": self.dtype,
        }

    @property
    def digest(self) -> str:
        """The sha256 of `content()`; its first 16 digits name the folder of the store."""
        return digest_json(self.content())

    @property
    def folder(self) -> str:
        """The name of the store's folder."""
        return self.digest[:16]

    def write(self, path: Path) -> None:
        """Write the manifest as an artifact: header, content, digest, and what is recorded."""
        content = self.content()
        del content["kind"], content["schema_version"]  # they stand in the header
        body = {**content, "digest": self.digest, "recorded": self.recorded}
        inputs = {"backbone": digest_json(self.backbone), "shards": self.data["shard_set"]}
        write_artifact(path, body, kind=self.kind, schema_version=SCHEMA_VERSION, inputs=inputs)

    @classmethod
    def read(cls, path: Path, *, kind: str = FEATURES) -> "Manifest":
        """Read a manifest. Raises: SchemaError if it is foreign, incomplete or was changed after it was written."""
        value = read_sealed(path, kind=kind, schema_version=SCHEMA_VERSION)
        try:
            manifest = cls(
                backbone=value["backbone"],
                cells=value["cells"],
                data=value["data"],
                shards=tuple(ShardEntry(**shard) for shard in value["shards"]),
                dtype=value["dtype"],
                recorded=value["recorded"],
                kind=kind,
            )
        except (KeyError, TypeError) as error:
            raise SchemaError(f"'{path}' is no complete manifest: {error!r}.") from error
        if manifest.digest != value.get("digest"):
            raise SchemaError(f"'{path}': the digest does not fit the content.", fix="extract the store again")
        return manifest


def kind_of(path: Path) -> str:
    """Return the kind of store that a manifest says it belongs to. Raises: SchemaError if it is none of the known."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))[HEADER]["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"'{path}' is no manifest: it has no readable header.") from error
    if kind not in SHARD_KINDS:
        raise SchemaError(f"'{path}' is an artifact '{kind}'.", f"expected: {' or '.join(SHARD_KINDS)}")
    return str(kind)


def read_sealed(path: Path, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Read an artifact and compare its body with the digest in its header. Raises: SchemaError where they differ."""
    value = read_json(
        path,
        kind=kind,
        schema_version=schema_version,
        remake="`diffprobe extract` writes it anew; remove the old folder",
    )
    header = value.pop(HEADER)
    if header.get("digest") != digest_json(value):
        raise SchemaError(f"'{path}' was changed after it was written: its digest differs.", fix="extract it again")
    return value


def cell_file(cell: str) -> str:
    """Name the file of a cell; colons are not allowed in file names everywhere.

    >>> cell_file("mid_block@t100:empty:mean")
    'mid_block@t100.empty.mean.safetensors'
    """
    return cell.replace(":", ".").replace("/", "_") + ".safetensors"


def covers(stored: Manifest, asked: Manifest) -> bool:
    """Announce whether a store holds all that is asked for: the same settings, and at least the same cells and shards."""
    return not differences(stored, asked)


def differences(stored: Manifest, asked: Manifest) -> list[str]:
    """List in what `stored` differs from `asked`, one line a setting; empty if it can serve the request."""
    lines = []
    for name, (had, wanted) in _settings(stored, asked).items():
        if had != wanted:
            lines.append(f"{name}: store {_short(had)}, asked {_short(wanted)}")
    missing = [cell for cell in asked.cells if cell not in stored.cells]
    if missing:
        lines.append(f"cells: the store lacks {', '.join(missing)}; it has {', '.join(stored.cells)}")
    lines += [
        f"width of {cell}: store {stored.cells[cell]}, asked {width}"
        for cell, width in asked.cells.items()
        if stored.cells.get(cell, width) != width
    ]
    had_shards = {shard.file: shard for shard in stored.shards}
    absent = [shard.file for shard in asked.shards if shard.file not in had_shards]
    other = [shard.file for shard in asked.shards if had_shards.get(shard.file, shard) != shard]
    if absent:
        lines.append(f"shards: the store lacks {_some(absent)}; its splits are {', '.join(stored.splits)}")
    if other:
        had_n, asked_n = stored_counts(stored), stored_counts(asked)
        lines.append(f"shards: other content or sample counts in {_some(other)}; store {had_n}, asked {asked_n}")
    return lines


def stored_counts(manifest: Manifest) -> str:
    """Write the number of samples of each split: "train 18, val 6"."""
    counts = {split: sum(s.n for s in manifest.shards if s.split == split) for split in manifest.splits}
    return ", ".join(f"{split} {n}" for split, n in counts.items())


def _settings(stored: Manifest, asked: Manifest) -> dict[str, tuple[Any, Any]]:
    had, wanted = _flat(stored), _flat(asked)
    return {name: (had.get(name), wanted.get(name)) for name in sorted(had.keys() | wanted.keys())}


def _flat(manifest: Manifest) -> dict[str, Any]:
    backbone = {f"backbone.{name}": v for name, v in manifest.backbone.items() if name not in _PER_CELL}
    return {**backbone, **{f"data.{name}": v for name, v in manifest.data.items()}, "dtype": manifest.dtype}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    is_digest = isinstance(value, str) and len(text) >= 32 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:8]}.." if is_digest else text if len(text) <= 120 else f"{text[:117]}..."


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
