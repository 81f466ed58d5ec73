"""Open a feature store: by its folder, or by search for the store that serves a request.

Feature files are memory-mapped (safetensors); nothing is unpickled.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.digest import digest_file_once
from diffprobe.core.errors import (
    ConfigError,
    DiffprobeError,
    RunFailed,
    SchemaError,
    StoreIncomplete,
    StoreMismatch,
    unknown,
)
from diffprobe.core.facts_html import facts_html, rows_html
from diffprobe.core.patience import NO_PATIENCE, Patience, cause, try_again
from diffprobe.core.safetensors_file import open_safetensors
from diffprobe.features.batch import FeatureTable, concatenate
from diffprobe.features.cell_selection import choose_cell
from diffprobe.features.manifest import FEATURES, TENSORS, Manifest, ShardEntry, covers, differences, kind_of
from diffprobe.features.tensor_file import rows_shape
from diffprobe.features.verify import find_faults, is_too_large, read_samples
from diffprobe.features.writer import MANIFEST, shard_folder


class FeatureStore:
    """A store of features (or of latents) on disk. Create it with `open` or `find`.

    `arrays` returns the features and targets of one cell and split, for any estimator with `fit(x, y)`:

        store = FeatureStore.open("runs/stores/0123456789abcdef")
        x, y = store.arrays("mid_block@t200", split="train", target="label")

    Attributes:
        path: the store's folder.
        manifest: the identity of the store.
        only: file names of the source shards that are read; None for all. A store may have more shards than a request
            needs (`data.limit`); the others are then ignored.
        verifies: whether the checksum of each feature file is compared before it is read, once per process.
        patience: how long a file is tried again while the whole store is away with its storage.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        only: frozenset[str] | None = None,
        verify: bool = True,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        self.path, self.manifest, self.only, self.verifies, self.patience = path, manifest, only, verify, patience

    @classmethod
    def open(cls, path: Path | str, *, kind: str | None = FEATURES, verify: bool = True) -> "FeatureStore":
        """Open a store by its folder; it may be incomplete.

        Args:
            kind: FEATURES or LATENTS; None accepts both.
            verify: compare the checksum of each feature file before it is read, once per process.

        Raises: StoreIncomplete if there is no manifest; SchemaError if the manifest has another kind or schema version,
            or was modified.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise StoreIncomplete(f"'{path}' is not a store: it has no {MANIFEST}.", fix="diffprobe store list FOLDER")
        return cls(path, Manifest.read(path / MANIFEST, kind=kind or kind_of(path / MANIFEST)), verify=verify)

    @classmethod
    def find(
        cls,
        root: Path | str,
        expected: Manifest,
        *,
        command: str = "diffprobe extract ...",
        verify: bool = True,
        patience: Patience = NO_PATIENCE,
    ) -> "FeatureStore":
        """Return the store below `root` that serves a request: equal settings, at least the requested cells and shards.

        Shards that were not requested are not read.

        Args:
            command: command that creates the store, for the messages.
            verify: see `open`.
            patience: see the class.

        Raises: StoreIncomplete if the store does not exist or is incomplete; StoreMismatch if `root` has only other
            stores, with the differences to the nearest one.
        """
        root = Path(root)
        if (root / expected.folder / MANIFEST).exists():
            exact = cls.open(root / expected.folder, verify=verify)  # raises for a damaged store of this name
            exact.patience = patience
            if not exact.missing(expected.splits):
                return exact
        found = list(list_stores(root))
        asked = frozenset(shard.file for shard in expected.shards)
        fitting = [
            cls(store.path, store.manifest, only=asked, verify=verify, patience=patience)
            for store in found
            if covers(store.manifest, expected)
        ]
        splits = expected.splits
        for store in fitting:
            if not store.missing(splits):
                return store
        if fitting:
            fitting[0].check_complete(splits, command=command)
        if not found:
            raise StoreIncomplete(f"there is no feature store in '{root}'.", fix=command)
        nearest = min(found, key=lambda store: len(differences(store.manifest, expected)))
        raise StoreMismatch(
            f"feature store {nearest.path.name} in '{root}' was made with other settings than requested.",
            *differences(nearest.manifest, expected),
            *([f"it is the nearest of {len(found)} stores in that folder"] if len(found) > 1 else []),
            fix=f"make the requested store: {command}",
        )

    def __repr__(self) -> str:
        return f"FeatureStore({self.path}: {len(self.cells)} cells, {self._counts()})"

    def _repr_html_(self) -> str:
        missing = len(self.missing())
        facts = {
            "samples": self._counts(),
            "classes": ", ".join(self.classes()[:10]) + (" ..." if len(self.classes()) > 10 else ""),
            "attributes": ", ".join(f"{name} ({len(values):,} values)" for name, values in self.attributes.items()),
            "folder": self.path,
            "shards that are not written yet": missing or None,
        }
        cells = list(self.manifest.cells.items())
        return facts_html(f"feature store {self.path.name}", facts, tables=[rows_html(["cell", "width"], cells)])

    def _counts(self) -> str:
        shards = self.shards()
        return ", ".join(f"{split} {sum(s.n for s in shards if s.split == split):,}" for split in self.splits)

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells."""
        return tuple(self.manifest.cells)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return self.manifest.splits

    @cached_property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values; a sample's attribute is an index into them."""
        return {name: tuple(values) for name, values in self.manifest.recorded["attributes"].items()}

    def classes(self, target: str = "label") -> tuple[str, ...]:
        """Return the names that the integers of a target stand for: class names, or the values of an attribute.

        Args:
            target: "label" or the name of an attribute.

        Raises: UnknownName with the nearest targets.
        """
        names = {"label": tuple(self.manifest.recorded["classes"]), **self.attributes}
        if target not in names:
            raise unknown("target of this store", target, names)
        return names[target]

    def arrays(
        self, cell: str, *, split: str = "train", target: str = "label"
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Return features and targets of one cell and split, without the samples that have no value of the target.

        Args:
            cell: name of a cell, or a unique prefix of it: `mid_block@t200`.
            split: name of a split.
            target: "label" or the name of an attribute; see `classes` for the names of its values.

        Raises: UnknownName for a cell, split or target that the store does not have (with the nearest names),
            ConfigError for a cell with more than one vector per sample, StoreIncomplete if the split is incomplete.
        """
        self.classes(target)
        name = choose_cell(cell, self.cells)
        table = self.load(split, [name])
        x, y = table.features[name], table.label if target == "label" else table.attributes[target]
        if x.ndim != 2:
            raise ConfigError(
                f"cell '{name}' has features of shape {list(x.shape[1:])} per sample; one vector is needed.",
                fix=f"extract with features.pool=mean, or read all values with load('{split}', ['{name}'])",
            )
        known = y >= 0
        return (x, y) if bool(known.all()) else (x[known], y[known])

    def shards(self, splits: Sequence[str] | None = None) -> list[ShardEntry]:
        """List the source shards of some splits (all if None).

        Raises: UnknownName for a split that the store does not have.
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
        """Raise StoreIncomplete, listing the missing shards, unless all shards of `splits` are written."""
        missing = self.missing(splits)
        if missing:
            raise StoreIncomplete(
                f"feature store '{self.path}' lacks {len(missing)} of {len(self.shards(splits))} shards.",
                f"missing: {', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''}",
                fix=f"continue: {command}",
            )

    def load(self, split: str, cells: Sequence[str] | None = None) -> FeatureTable:
        """Return all features of one split, in shard order.

        A split with one shard is memory-mapped; several shards are copied into one array. `iter_shards` never copies.

        Raises: StoreIncomplete; SchemaError for a modified file; UnknownName for a split or cell that the store does
            not have.
        """
        return concatenate(list(self.iter_shards(split, cells)))

    def iter_shards(self, split: str, cells: Sequence[str] | None = None) -> Iterator[FeatureTable]:
        """Yield one memory-mapped table per source shard.

        Files that vanish with the whole store are tried again for as long as `patience` has it.

        Raises: see `load`; RunFailed for a storage that did not come back.
        """
        self.check_complete([split])
        chosen = self._check_cells(cells)
        for shard in self.shards([split]):
            yield try_again(partial(self._here, shard, chosen), self._named(shard), self.patience, self._gone)

    def _here(self, shard: ShardEntry, cells: Sequence[str]) -> FeatureTable:
        """Open a shard.

        Raises: with patience, OSError (ENOENT) instead of StoreIncomplete where the whole store is away.
        """
        try:
            return self._table(shard, cells)
        except StoreIncomplete:
            self._require_manifest()
            raise
        except FileNotFoundError as error:
            self._require_manifest()
            raise StoreIncomplete(f"'{error.filename}' is missing.", fix=_fix(Path(error.filename))) from error

    def _require_manifest(self) -> None:
        if self.patience.seconds:
            (self.path / MANIFEST).stat()

    def _named(self, shard: ShardEntry) -> str:
        return f"feature store {self.path.name}, shard {shard.file}"

    def _gone(self, error: OSError, tried: str) -> RunFailed:
        return RunFailed(
            f"feature store '{self.path}': its storage did not come back within {tried} ({cause(error)}).",
            f"file: {error.filename}",
            fix="make the folder readable again and give the same command: it continues; "
            "data.storage_patience=SECONDS waits longer",
        )

    def verify(self) -> list[str]:
        """Compare every file with its recorded checksum and return one line per fault."""
        return find_faults(self.path, self.manifest)

    def samples(self, shard: ShardEntry) -> dict[str, Any]:
        """Return the `samples.json` of a shard. Raises: SchemaError if it was modified or belongs to another store."""
        return read_samples(self.path, self.manifest, shard)

    def _table(self, shard: ShardEntry, cells: Sequence[str]) -> FeatureTable:
        samples = self.samples(shard)
        folder, name = self.path / shard_folder(shard.file), TENSORS[self.manifest.kind]
        files = {cell: folder / samples["cells"][cell]["file"] for cell in cells}
        for cell, file in files.items() if self.verifies else ():
            _check_digest(file, samples["cells"][cell])
        features = {cell: _mapped(file, name) for cell, file in files.items()}
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
    root: Path | str, *, broken: dict[str, DiffprobeError] | None = None, kind: str | None = FEATURES
) -> Iterator[FeatureStore]:
    """Yield the readable stores directly below `root`, sorted by name. Folders without a manifest are ignored.

    Args:
        broken: filled with folder name -> error, for the stores that cannot be read.
        kind: FEATURES or LATENTS; None yields both.
    """
    for file in sorted(Path(root).glob(f"*/{MANIFEST}")):
        try:
            store = FeatureStore.open(file.parent, kind=None)
        except (SchemaError, StoreIncomplete) as error:
            if broken is not None:
                broken[file.parent.name] = error
        else:
            if kind in (None, store.manifest.kind):
                yield store


def _check_digest(path: Path, entry: dict[str, Any]) -> None:
    """Compare a file with its checksum, once per process while it stays the same. Raises: SchemaError."""
    if not path.is_file():
        raise StoreIncomplete(f"'{path}' is missing.", fix=_fix(path))
    if is_too_large(path, entry) or digest_file_once(path) != entry["sha256"]:
        raise SchemaError(f"'{path}' was modified after it was written (checksum).", fix=_fix(path))


def _mapped(path: Path, name: str) -> Float[Tensor, "samples ..."]:
    try:
        rows_shape(path, name)
        with open_safetensors(path, fix=_fix(path)) as file:
            return file.get_tensor(name)
    except FileNotFoundError as error:
        raise StoreIncomplete(f"'{path}' is missing.", fix=_fix(path)) from error


def _fix(path: Path) -> str:
    return f"remove the folder '{path.parent}' and extract again; all faults: diffprobe store verify {path.parents[1]}"
