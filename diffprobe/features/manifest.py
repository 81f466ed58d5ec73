"""The manifest of a store: its identity, its digest, and whether it can serve a request.

There are two kinds of stores: of features, and of the VAE's latents (latent_cache.py); they have the same layout.

The digest covers the backbone's fingerprint, the cells, the source shards (by checksum), the fields read, and the
number format. Names, class lists and library versions are recorded but not digested, since they follow from the former
or may differ between machines. Paths, hosts and dates are neither. Reading a manifest needs no torch.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.registry import DATASETS

FEATURES = "feature_store"
LATENTS = "latent_store"
SHARD_KINDS = {FEATURES: "feature_shard", LATENTS: "latent_shard"}
"""Kind of a store -> kind of the `samples.json` of its shards."""
TENSORS = {FEATURES: "features", LATENTS: "vae_latents"}
"""Kind of a store -> name of the tensor in its safetensors files."""
SCHEMA_VERSION = 3
# The values of a cell do not depend on the other cells, so a store with more cells serves a request as well.
_MAX_COUNT = 2**40
"""Largest number of samples of a shard and of values of a cell, far above what a disk holds."""
_PER_CELL = frozenset({"cells", "taps", "timesteps"})


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One source shard: the store has its first `n` samples; `sha256` is the checksum of the shard file."""

    file: str
    split: str
    n: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity of a store.

    Attributes:
        backbone: `DiffusionFeatures.fingerprint`: weights, taps, timesteps, conditions, pool, draws, seed, resolution;
            for latents the settings of the VAE.
        cells: cell name -> width (`d_in`; channels when `pool=none`); for latents only `vae_latents`.
        data: digest of the shard set (`shard_set`), field names, and the handling of faulty samples.
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
        for name in ("backbone", "data", "recorded"):  # tuples become lists, as after reading
            object.__setattr__(self, name, json.loads(canonical_json(getattr(self, name))))
        files = [cell_file(cell) for cell in self.cells]
        if len(set(files)) < len(files):
            raise ConfigError("two cells have the same file name in the store.", f"cells: {', '.join(self.cells)}")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in the order of the shards."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    def content(self) -> dict[str, Any]:
        """Return the digested content as JSON types."""
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
        """Write the manifest as an artifact: header, content, digest, recorded metadata."""
        content = self.content()
        del content["kind"], content["schema_version"]  # both are in the header
        body = {**content, "digest": self.digest, "recorded": self.recorded}
        inputs = {"backbone": digest_json(self.backbone), "shards": self.data["shard_set"]}
        write_artifact(path, body, kind=self.kind, schema_version=SCHEMA_VERSION, inputs=inputs)

    @classmethod
    def read(cls, path: Path, *, kind: str = FEATURES) -> "Manifest":
        """Read a manifest. Raises: SchemaError for another kind or version, or an incomplete or modified file."""
        value = read_sealed(path, kind=kind, schema_version=SCHEMA_VERSION)
        try:
            manifest = _parse(value, kind)
        except (KeyError, TypeError, DiffprobeError) as error:
            cause = error.what if isinstance(error, DiffprobeError) else f"{type(error).__name__}: {error}"
            raise SchemaError(
                f"'{path}' is not a complete manifest ({cause}).", fix="extract the store again"
            ) from error
        if manifest.digest != value.get("digest"):
            raise SchemaError(f"'{path}': the digest does not match the content.", fix="extract the store again")
        return manifest


def _parse(value: dict[str, Any], kind: str) -> Manifest:
    """Read the body of a manifest. Raises: SchemaError, KeyError or TypeError for a missing or wrong part."""
    recorded = expect(value["recorded"], dict, where="recorded")
    attributes = expect(recorded["attributes"], dict, where="recorded.attributes")
    for name, texts in (("classes", recorded["classes"]), *attributes.items()):
        if not all(isinstance(text, str) for text in expect(texts, list, where=f"recorded.{name}")):
            raise SchemaError(f"recorded.{name}: expected a list of texts")
    for name in ("backbone", "data", "licence"):
        expect(recorded[name], str, where=f"recorded.{name}")
    expect(recorded["versions"], dict, where="recorded.versions")
    if faults := describe_faults(column_faults(attributes)):
        raise SchemaError(f"{faults[0]}; rename it in the index (diffprobe data index --rename)")
    cells = expect(value["cells"], dict, where="cells")
    for cell, width in cells.items():
        if not 1 <= expect(width, int, where=f"cells: {cell}") <= _MAX_COUNT or (
            kind == FEATURES and not _is_cell(cell)
        ):
            raise SchemaError(f"cells: {cell}: {width}")
    shards = tuple(ShardEntry(**expect(shard, dict, where="shards")) for shard in value["shards"])
    for shard in shards:
        for name, of in (("file", str), ("split", str), ("n", int), ("sha256", str)):
            expect(getattr(shard, name), of, where=f"shards: {name}")
        if not 0 <= shard.n <= _MAX_COUNT:
            raise SchemaError(f"shards: '{shard.file}' has {shard.n} samples")
    data = expect(value["data"], dict, where="data")
    expect(data["shard_set"], str, where="data.shard_set")
    return Manifest(
        backbone=expect(value["backbone"], dict, where="backbone"), cells=cells, data=data, shards=shards,
        dtype=expect(value["dtype"], str, where="dtype"), recorded=recorded, kind=kind,
    )  # fmt: skip


def _is_cell(name: str) -> bool:
    """Return whether a name has the parts of a cell: tap, timestep, condition, pooling."""
    return re.fullmatch(r"[^@:]+@t\d+:[^:]+:[^:]+", name) is not None and ".." not in name.split("/")


def kind_of(path: Path) -> str:
    """Return the kind of a manifest's store. Raises: SchemaError for another file."""
    header = read_json_object(path).get(HEADER)
    if not isinstance(header, dict) or "kind" not in header:
        raise SchemaError(f"'{path}' is not a manifest: it has no readable header.")
    if header["kind"] not in SHARD_KINDS:
        raise SchemaError(f"'{path}' is an artifact '{header['kind']}'.", f"expected: {' or '.join(SHARD_KINDS)}")
    return str(header["kind"])


def read_sealed(path: Path, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Return the content of an artifact of a store. Raises: SchemaError, see `read_json`."""
    value = read_json(
        path,
        kind=kind,
        schema_version=schema_version,
        remake=lambda old: f"{_remake(old)}, then remove the folder '{path.parent}'",
    )
    del value[HEADER]
    return value


_REMADE = {
    "backbone.random_weights": False,
    "backbone.random_seed": 0,
    "backbone.dtype": "float32",
    "backbone.quantize": "none",
    "features.pool": "mean",
    "features.draws": 1,
    "features.keep_draws": False,
    "features.seed": 0,
}
"""Settings that a fingerprint holds under their last name, with their defaults, which a command need not give."""


def _remake(old: dict[str, Any]) -> str:
    """Return the command that extracts a store of an older version again, as far as its manifest has the settings."""
    backbone, recorded = (part if isinstance(part := old.get(name), dict) else {} for name in ("backbone", "recorded"))
    settings = []
    if name := recorded.get("backbone"):
        settings.append(f"backbone.path={name}")
    if name := recorded.get("data"):
        settings.append(f"data.path={name if name in DATASETS.names() else 'FOLDER'}")
    for key in ("taps", "timesteps"):
        if isinstance(backbone.get(key), list):
            settings.append(f"'features.{key}=[{','.join(map(str, backbone[key]))}]'")
    for key, default in _REMADE.items():
        if backbone.get(key.rpartition(".")[2], default) not in (default, None):
            settings.append(f"{key}={str(backbone[key.rpartition('.')[2]]).lower()}")
    return f"extract it again: diffprobe extract {' '.join(settings) or 'experiment=NAME'}"


def cell_file(cell: str) -> str:
    """Return the file name of a cell; colons are not allowed in file names on all systems.

    >>> cell_file("mid_block@t100:empty:mean")
    'mid_block@t100.empty.mean.safetensors'
    """
    return cell.replace(":", ".").replace("/", "_") + ".safetensors"


def covers(stored: Manifest, asked: Manifest) -> bool:
    """Return whether a store serves a request: equal settings, and at least the requested cells and shards."""
    return not differences(stored, asked)


def differences(stored: Manifest, asked: Manifest) -> list[str]:
    """List the differences between a store and a request, one line per setting; empty if the store serves it."""
    lines = []
    for name, (had, wanted) in _settings(stored, asked).items():
        if had != wanted:
            lines.append(f"{name}: store {_short(had)}, requested {_short(wanted)}")
    missing = [cell for cell in asked.cells if cell not in stored.cells]
    if missing:
        lines.append(f"cells: missing in the store: {', '.join(missing)}; it has {', '.join(stored.cells)}")
    lines += [
        f"width of {cell}: store {stored.cells[cell]}, requested {width}"
        for cell, width in asked.cells.items()
        if stored.cells.get(cell, width) != width
    ]
    had_shards = {shard.file: shard for shard in stored.shards}
    absent = [shard.file for shard in asked.shards if shard.file not in had_shards]
    other = [shard.file for shard in asked.shards if had_shards.get(shard.file, shard) != shard]
    if absent:
        lines.append(f"shards: missing in the store: {_some(absent)}; its splits are {', '.join(stored.splits)}")
    if other:
        had_n, asked_n = stored_counts(stored), stored_counts(asked)
        lines.append(f"shards: other content or sample counts in {_some(other)}; store {had_n}, requested {asked_n}")
    return lines


def stored_counts(manifest: Manifest) -> str:
    """Format the number of samples per split: "train 18, val 6"."""
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
