"""Verify a store: compare every file with its recorded checksum and shape, and report foreign files.

A fault is one line of text; verification continues after each fault.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from diffprobe.core.digest import digest_file
from diffprobe.core.errors import DiffprobeError, SchemaError, StoreIncomplete
from diffprobe.core.json_file import expect
from diffprobe.core.progress import Bar, MakeBar
from diffprobe.features.manifest import (
    FEATURES,
    SHARD_KINDS,
    TENSORS,
    Manifest,
    ShardEntry,
    cell_file,
    kind_of,
    read_sealed,
)
from diffprobe.features.tensor_file import rows_shape
from diffprobe.features.writer import MANIFEST, SAMPLES, SHARD_SCHEMA_VERSION, TEMPORARY, shard_folder

_MAX_HEADER = 2**20
"""Allowance in bytes for the header of a safetensors file of one tensor."""


def read_samples(path: Path, manifest: Manifest, shard: ShardEntry) -> dict[str, Any]:
    """Return the `samples.json` of a shard of the store in `path`.

    Raises: SchemaError if it was modified or belongs to another store or shard; FileNotFoundError.
    """
    samples = _read_own(path, manifest, shard)
    try:
        _check_samples(samples, manifest)
        for fault in _sample_faults(samples, manifest, shard):
            raise SchemaError(fault.removeprefix(f"{SAMPLES}: "))
    except (KeyError, TypeError, DiffprobeError) as error:
        file = path / shard_folder(shard.file) / SAMPLES
        cause = error.what if isinstance(error, DiffprobeError) else f"{type(error).__name__}: {error}"
        raise SchemaError(f"'{file}' is not complete ({cause}).", fix="remove its folder and extract again") from error
    return samples


def _read_own(path: Path, manifest: Manifest, shard: ShardEntry) -> dict[str, Any]:
    file = path / shard_folder(shard.file) / SAMPLES
    samples = read_sealed(file, kind=SHARD_KINDS[manifest.kind], schema_version=SHARD_SCHEMA_VERSION)
    if samples.get("store") != manifest.digest or samples.get("shard") != shard.file:
        raise SchemaError(f"'{file}' belongs to another store or shard.", fix="remove its folder and extract again")
    return samples


def _check_samples(samples: dict[str, Any], manifest: Manifest) -> None:
    """Check types, lengths and ranges. Raises: SchemaError, KeyError or TypeError."""
    keys = expect(samples["keys"], list, where="keys")
    texts = {"keys": keys, "captions": expect(samples["captions"], list, where="captions")}
    attributes = expect(samples["attributes"], dict, where="attributes")
    sizes = {name: len(values) for name, values in manifest.recorded["attributes"].items()}
    if set(attributes) - set(sizes):
        raise SchemaError(f"attribute '{min(set(attributes) - set(sizes))}' is not in the manifest")
    for name, column in texts.items():
        if not all(isinstance(value, str) for value in column):
            raise SchemaError(f"{name}: expected texts")
    ids = {"label": (samples["label"], len(manifest.recorded["classes"]))}
    ids |= {f"attributes.{name}": (column, sizes[name]) for name, column in attributes.items()}
    for name, (column, size) in ids.items():
        if not all(type(value) is int and -1 <= value < size for value in expect(column, list, where=name)):
            raise SchemaError(f"{name}: expected integers from -1 to {size - 1}")
    for name, column in (*texts.items(), *((name, column) for name, (column, _) in ids.items())):
        if len(column) != len(keys):
            raise SchemaError(f"'{name}' has {len(column)} values for {len(keys)} keys")
    for entry in expect(samples["left_out"], list, where="left_out"):
        expect(entry["key"], str, where="left_out"), expect(entry["message"], str, where="left_out")
    for cell, entry in expect(samples["cells"], dict, where="cells").items():
        if entry["file"] != cell_file(cell):
            raise SchemaError(f"cells: '{cell}' has the file '{entry['file']}'")
        expect(entry["sha256"], str, where="cells: sha256")
        shape = expect(entry["shape"], list, where="cells: shape")
        if shape[:1] != [len(keys)] or not all(type(n) is int and n >= 0 for n in shape):
            raise SchemaError(f"cells: '{cell}' has the shape {str(shape)[:80]} for {len(keys)} keys")
    missing = sorted(set(manifest.cells) - set(samples["cells"]))
    if missing:
        raise SchemaError(f"cells: '{missing[0]}' is missing")


def verify_folder(path: Path | str, *, make_bar: MakeBar | None = None) -> list[str]:
    """Return the faults of the store in a folder and of its manifest, one line each.

    Args:
        make_bar: opens a bar over the feature files, see `find_faults`.

    Raises: StoreIncomplete if there is no manifest.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise StoreIncomplete(f"'{path}' is not a store: it has no {MANIFEST}.", fix="diffprobe store list")
    try:
        manifest = Manifest.read(path / MANIFEST, kind=kind_of(path / MANIFEST))
    except SchemaError as error:
        said = str(error).splitlines()[0]  # of bounded length
        return [f"{MANIFEST}: {said}" + (f" fix: {error.fix}" if error.fix else "")]
    return find_faults(path, manifest, make_bar=make_bar)


def find_faults(path: Path, manifest: Manifest, *, make_bar: MakeBar | None = None) -> list[str]:
    """Return the faults of a store with a valid manifest, one line each.

    A missing shard is a fault of a feature store; a latent store may be incomplete.

    Args:
        make_bar: opens a bar over the feature files of the shards that are there.
    """
    faults = []
    if path.name != manifest.folder:
        faults.append(f"the folder is named {path.name}, expected {manifest.folder} by its digest")
    known = {shard_folder(shard.file): shard for shard in manifest.shards}
    n_files = len(manifest.cells) * sum((path / name).is_dir() for name in known)
    with make_bar(n_files) if make_bar else nullcontext() as bar:
        for name, shard in known.items():
            if (path / name).is_dir():
                faults += _shard_faults(path, manifest, shard, bar)
            elif manifest.kind == FEATURES:
                faults.append(f"{shard.file}: not written yet")
    return faults + list(_foreign(path, {MANIFEST, *known}))


def _shard_faults(path: Path, manifest: Manifest, shard: ShardEntry, bar: Bar | None) -> list[str]:
    folder = path / shard_folder(shard.file)
    try:
        samples = _read_own(path, manifest, shard)
        faults = list(_sample_faults(samples, manifest, shard))
        if not faults:
            _check_samples(samples, manifest)
        files = {cell: samples["cells"][cell] for cell in manifest.cells if cell in samples["cells"]}
        for entry in files.values():
            faults += _file_faults(folder / entry["file"], entry, len(samples["keys"]), TENSORS[manifest.kind])
            if bar is not None:
                bar.update(1)
    except (DiffprobeError, FileNotFoundError, LookupError, TypeError, AttributeError, ValueError) as error:
        return [f"{folder.name}/{SAMPLES}: {str(error).splitlines()[0]}"]
    faults += _foreign(folder, {SAMPLES, *(entry["file"] for entry in files.values())})
    return [fault if fault.startswith(folder.name) else f"{folder.name}/{fault}" for fault in faults]


def _sample_faults(samples: dict[str, Any], manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    keys, n_left_out = samples["keys"], len(samples["left_out"])
    if len(keys) + n_left_out != shard.n:
        yield f"{SAMPLES}: {len(keys)} samples and {n_left_out} left out, {shard.n} in the manifest"
    if len(set(keys)) != len(keys):
        yield f"{SAMPLES}: duplicate key"
    columns = {"label": samples["label"], "captions": samples["captions"]}
    columns |= {f"attributes.{name}": column for name, column in samples["attributes"].items()}
    for name, column in columns.items():
        if len(column) != len(keys):
            yield f"{SAMPLES}: '{name}' has {len(column)} values for {len(keys)} keys"
    if set(samples["cells"]) != set(manifest.cells):
        yield f"{SAMPLES}: its cells differ from the manifest"


def _file_faults(path: Path, entry: dict[str, Any], n_keys: int, tensor: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: missing"
        return
    if is_too_large(path, entry) or digest_file(path) != entry["sha256"]:
        yield f"{path.name}: modified after it was written (checksum)"
        return
    try:
        shape = rows_shape(path, tensor)
    except SchemaError as error:
        yield f"{path.name}: {error.what}"
        return
    if list(shape) != entry["shape"] or shape[0] != n_keys:
        yield f"{path.name}: {shape[0]} rows for {n_keys} keys"


def is_too_large(path: Path, entry: dict[str, Any]) -> bool:
    """Return whether a file is larger than its recorded shape allows, so that its checksum need not be computed."""
    return path.stat().st_size > 8 * math.prod(entry["shape"]) + _MAX_HEADER


def _foreign(folder: Path, known: Iterable[str]) -> Iterator[str]:
    """Yield the files that are not part of a store, except for those that other processes are writing."""
    expected = set(known)
    for entry in sorted(folder.iterdir()):
        is_begun = entry.name.startswith(TEMPORARY) or (entry.name.startswith(".") and entry.suffix == ".tmp")
        if entry.name not in expected and not is_begun:
            yield f"{entry.name}: not part of the store"
