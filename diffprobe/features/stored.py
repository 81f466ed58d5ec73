"""StoredFeatures: feature batches from a store. The same batches as live.py, without the backbone at work."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.features.batch import FeatureBatch, FeatureTable, concatenate
from diffprobe.features.order import eval_order, train_order
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import choose_cells
from diffprobe.features.source import EpochLoader, FeatureSource

IN_MEMORY_BYTES = 2 << 30
"""Splits up to this size are read whole; larger ones stay mapped, and each batch is gathered from the files."""


class StoredFeatures(FeatureSource):
    """Feature batches read from the store that `diffprobe extract` wrote (see `FeatureSource` for the arguments).

    The store is searched below `features.store`; no backbone is loaded, its weight files are hashed.

    Raises: StoreIncomplete, StoreMismatch (with all that differs) when the store is opened.
    """

    @cached_property
    def store(self) -> FeatureStore:
        """The store that serves the request."""
        command = self.request.command
        return FeatureStore.find(self.request.features.store, self.request.manifest, command=command)

    def __getstate__(self) -> dict[str, object]:  # mapped files do not travel to spawned processes
        return {name: value for name, value in vars(self).items() if name not in ("store", "_rows")}

    def prepare_data(self) -> None:
        """Find the store on the main process first, so that a fault is reported once."""
        _ = self.store

    def setup(self, stage: str | None = None) -> None:
        """Find the store."""
        _ = self.widths

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; `label` is an index into them."""
        return self.store.classes

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values."""
        return self.store.attributes

    @cached_property
    def widths(self) -> dict[str, int]:
        """Cell name -> `d_in`."""
        available = self.store.manifest.cells
        wanted = self.request.manifest.cells  # a store may hold more cells than were asked for
        return {cell: available[cell] for cell in choose_cells(self._asked, list(wanted))}

    def table(self, split: str) -> FeatureTable:
        """Return all features of one split, in shard order."""
        return self.store.load(split, list(self.widths))

    def loader(
        self, split: str, *, shuffle: bool, rank: int = 0, world_size: int = 1, epoch: int | Callable[[], int] = 0
    ) -> "StoredLoader":
        """Make the loader of one split for one rank (see `FeatureSource.loader`)."""
        rows = self._split_rows(split)

        def order(number: int) -> Tensor:
            if shuffle:
                return train_order(rows.n, seed=self.seed, epoch=number, rank=rank, world_size=world_size)
            return eval_order(rows.n, rank=rank, world_size=world_size)

        return StoredLoader(rows, order, self.data.batch_size, epoch)

    @cached_property
    def _rows(self) -> dict[str, "Rows"]:
        return {}

    def _split_rows(self, split: str) -> "Rows":
        if split not in self._rows:
            self._rows[split] = Rows(list(self.store.iter_shards(split, list(self.widths))))
        return self._rows[split]


class Rows:
    """Random access to the rows of several tables as if they were one; large ones are not copied into memory."""

    def __init__(self, tables: Sequence[FeatureTable], *, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        size = sum(values.numel() * values.element_size() for table in tables for values in table.features.values())
        self.tables = [concatenate(tables)] if size <= in_memory_bytes else list(tables)
        self._ends = torch.tensor([len(table) for table in self.tables]).cumsum(0)

    @property
    def n(self) -> int:
        """The number of rows."""
        return int(self._ends[-1])

    def take(self, rows: Int[Tensor, " chosen"]) -> FeatureBatch:
        """Return rows as a batch, in the given order."""
        if len(self.tables) == 1:
            return self.tables[0].take(rows)
        owner = torch.searchsorted(self._ends, rows, right=True)
        places, parts = [], []
        for number in owner.unique().tolist():
            place = (owner == number).nonzero().squeeze(1)
            start = int(self._ends[number]) - len(self.tables[number])
            places.append(place)
            parts.append(self.tables[number].take(rows[place] - start))
        return _reorder(parts, torch.cat(places).argsort())


def _reorder(parts: list[FeatureBatch], order: Tensor) -> FeatureBatch:
    tables = [FeatureTable(part.features, part.keys, part.label, part.attributes) for part in parts]
    return concatenate(tables).take(order)


class StoredLoader(EpochLoader):
    """Batches of one rank; `order(epoch)` gives its row numbers."""

    def __init__(
        self, rows: Rows, order: Callable[[int], Tensor], batch_size: int, epoch: int | Callable[[], int]
    ) -> None:
        super().__init__(epoch)
        self.rows, self.order, self.batch_size = rows, order, batch_size
        self._n = -(-len(order(0)) // batch_size)

    def __len__(self) -> int:
        return self._n

    def _batches(self, epoch: int, skip: int) -> Iterator[FeatureBatch]:
        for rows in self.order(epoch).split(self.batch_size)[skip:]:
            yield self.rows.take(rows)


def open_rows(path: Path | str, split: str, cells: Sequence[str] | None = None) -> Rows:
    """Open one split of a store by its folder, without any backbone: for notebooks and machines without weights."""
    store = FeatureStore.open(path)
    return Rows(list(store.iter_shards(split, choose_cells(cells, store.cells))))
