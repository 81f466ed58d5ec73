"""Reads a store. Owns the search for a feature store that fits a request, and the refusal of one that does not.

Feature files are memory-mapped (safetensors); nothing is unpickled. stored.py feeds them to probes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from diffprobe.core.errors import SchemaError, StoreIncomplete, StoreMismatch, unknown
from diffprobe.features.batch import FeatureTable, concatenate
from diffprobe.features.manifest import FEATURES, TENSORS, Manifest, ShardEntry, covers, differences, kind_of
from diffprobe.features.verify import find_faults, read_samples
from diffprobe.features.writer import MANIFEST, shard_folder


class FeatureStore:
    """One store on disk, of features or of latents. Make it with `open` or `find`.

    Attributes:
        path: the store's folder.
        manifest: what fixed its content.
        only: names of the source shards that are read; None for all. A store may hold more than a request asks for
            (`data.limit`), and what serves it must look as if it did not.
    """

    def __init__(self, path: Path, manifest: Manifest, *, only: frozenset[str] | None = None) -> None:
        self.path, self.manifest, self.only = path, manifest, only

    @classmethod
    def open(cls, path: Path | str, *, kind: str | None = FEATURES) -> "FeatureStore":
        """Open a store by its folder, complete or not.

        Args:
            kind: FEATURES or LATENTS; None takes either.

        Raises: StoreIncomplete if there is no manifest, SchemaError if it is foreign or was changed.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise StoreIncomplete(f"'{path}' is no store: it has no {MANIFEST}.", fix="diffprobe store list FOLDER")
        return cls(path, Manifest.read(path / MANIFEST, kind=kind or kind_of(path / MANIFEST)))

    @classmethod
    def find(cls, root: Path | str, expected: Manifest, *, command: str = "diffprobe extract ...") -> "FeatureStore":
        """Return the store below `root` that serves a request: the same settings, at least its cells and shards.

        What the store holds beyond the shards asked for is not read.

        Args:
            command: what the user can type to make the store; ends up in the messages.

        Raises: StoreIncomplete if it is not there or not complete, StoreMismatch if there are other stores only; the
            nearest one is named with all that differs.
        """
        root = Path(root)
        if (root / expected.folder / MANIFEST).exists():
            exact = cls.open(root / expected.folder)  # a damaged one is named, not passed over
            if not exact.missing(expected.splits):
                return exact
        found = list(list_stores(root))
        asked = frozenset(shard.file for shard in expected.shards)
        fitting = [cls(store.path, store.manifest, only=asked) for store in found if covers(store.manifest, expected)]
        splits = expected.splits
        for store in fitting:
            if not store.missing(splits):
                return store
        if fitting:
            fitting[0].check_complete(splits, command=command)
        if not found:
            raise StoreIncomplete(f"there is no feature store in '{root}' yet.", fix=command)
        nearest = min(found, key=lambda store: len(differences(store.manifest, expected)))
        raise StoreMismatch(
            f"feature store {nearest.path.name} in '{root}' was not made with the settings asked for.",
            *differences(nearest.manifest, expected),
            *([f"it is the nearest of {len(found)} stores there"] if len(found) > 1 else []),
            fix=f"make one that fits: {command}",
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells."""
        return tuple(self.manifest.cells)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a sample's label is an index into them."""
        return tuple(self.manifest.recorded["classes"])

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values; a sample's attribute is an index into them."""
        return {name: tuple(values) for name, values in self.manifest.recorded["attributes"].items()}

    def shards(self, splits: Sequence[str] | None = None) -> list[ShardEntry]:
        """List the source shards that are read of some splits (all if None).

        Raises: UnknownName for a split the store lacks.
        """
        for split in splits or ():
            if split not in self.manifest.splits:
                raise unknown("split of this store", split, self.manifest.splits)
        return [
            shard
            for shard in self.manifest.shards
            if (splits is None or shard.split in splits) and (self.only is None or shard.file in self.only)
        ]

    def missing(self, splits: Sequence[str] | None = None) -> list[str]:
        """List the source shards that are not written yet."""
        return [shard.file for shard in self.shards(splits) if not (self.path / shard_folder(shard.file)).is_dir()]

    def check_complete(self, splits: Sequence[str] | None = None, *, command: str = "diffprobe extract ...") -> None:
        """Raise StoreIncomplete, naming the missing shards, unless all of `splits` is written."""
        missing = self.missing(splits)
        if missing:
            raise StoreIncomplete(
                f"feature store '{self.path}' lacks {len(missing)} of {len(self.shards(splits))} shards.",
                f"missing: {', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}",
                fix=f"continue: {command}",
            )

    def load(self, split: str, cells: Sequence[str] | None = None) -> FeatureTable:
        """Return all features of one split, in shard order.

        Memory-mapped where the split has one shard; several are copied into one array. `iter_shards` never copies.

        Raises: StoreIncomplete, UnknownName for a split or cell that the store lacks.
        """
        return concatenate(list(self.iter_shards(split, cells)))

    def iter_shards(self, split: str, cells: Sequence[str] | None = None) -> Iterator[FeatureTable]:
        """Yield one memory-mapped table a source shard."""
        self.check_complete([split])
        chosen = self._check_cells(cells)
        for shard in self.shards([split]):
            yield self._table(shard, chosen)

    def verify(self) -> list[str]:
        """Compare every file with what was recorded; return the faults, one line each (empty: all is well)."""
        return find_faults(self.path, self.manifest)

    def samples(self, shard: ShardEntry) -> dict[str, Any]:
        """Return the `samples.json` of a shard. Raises: SchemaError if it was changed, or is another store's."""
        return read_samples(self.path, self.manifest, shard)

    def _table(self, shard: ShardEntry, cells: Sequence[str]) -> FeatureTable:
        samples = self.samples(shard)
        folder, name = self.path / shard_folder(shard.file), TENSORS[self.manifest.kind]
        features = {cell: _mapped(folder / samples["cells"][cell]["file"], name) for cell in cells}
        keys = samples["keys"]
        for cell, values in features.items():
            if len(values) != len(keys):
                raise SchemaError(f"'{folder}': cell '{cell}' has {len(values)} rows for {len(keys)} keys.")
        return FeatureTable(
            features=features,
            keys=keys,
            label=torch.tensor(samples["label"], dtype=torch.long),
            attributes={name: torch.tensor(v, dtype=torch.long) for name, v in samples["attributes"].items()},
            captions=samples["captions"],
            shards=[shard.file] * len(keys),
        )

    def _check_cells(self, cells: Sequence[str] | None) -> Sequence[str]:
        for cell in cells or ():
            if cell not in self.manifest.cells:
                raise unknown("cell of this store", cell, self.manifest.cells)
        return self.cells if cells is None else cells


def list_stores(
    root: Path | str, *, broken: dict[str, str] | None = None, kind: str | None = FEATURES
) -> Iterator[FeatureStore]:
    """Yield the readable stores directly below `root`, by name. Folders without a manifest are none.

    Args:
        broken: gets folder name -> fault of the stores that cannot be read, which must not stand in others' way.
        kind: FEATURES or LATENTS; None yields both.
    """
    for file in sorted(Path(root).glob(f"*/{MANIFEST}")):
        try:
            store = FeatureStore.open(file.parent, kind=None)
        except SchemaError as error:
            if broken is not None:
                broken[file.parent.name] = error.what
        else:
            if kind in (None, store.manifest.kind):
                yield store


def _mapped(path: Path, name: str) -> Float[Tensor, "samples ..."]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except FileNotFoundError as error:
        raise StoreIncomplete(f"'{path}' is missing.", fix="check the store: diffprobe store verify FOLDER") from error
    except Exception as error:  # safetensors' own error class is not public in all versions
        raise SchemaError(f"'{path}' can't be read: {error}.", fix="diffprobe store verify FOLDER") from error
