"""StoredFeatures: feature batches from a store, equal to those of live.py, without running the backbone."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.device import choose_device
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import unknown
from diffprobe.core.patience import Patience
from diffprobe.features.batch import FeatureBatch, FeatureTable, RowBatch, RowValues, concatenate
from diffprobe.features.cell_selection import choose_cells
from diffprobe.features.datamodule import EpochLoader, FeatureSource
from diffprobe.features.placement import place_tables
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request
from diffprobe.features.row_layout import RowLayout, select
from diffprobe.features.samplers import RowOrder, balanced_order, eval_order, train_order

_OPENED = ("store", "view_stores", "_rows", "_view_rows", "_placed")
"""Attributes with mapped files, which are opened anew in a spawned process."""


class StoredFeatures(FeatureSource):
    """Feature batches read from the store that `diffprobe extract` wrote (see `FeatureSource` for the arguments).

    The store is searched below `features.store`. The backbone is not loaded; its weight files are hashed. With
    `features.views`, training reads the stores of the views: one in each epoch, or all of them.

    Args:
        balance: "label" or an attribute, whose values come equally often in training; None takes each sample once.

    Raises: StoreIncomplete, or StoreMismatch with the differences, when the store is opened.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        data: DataConfig,
        features: FeaturesConfig,
        *,
        seed: int = 0,
        cells: Sequence[str] | None = None,
        balance: str | None = None,
    ) -> None:
        super().__init__(backbone, data, features, seed=seed, cells=cells)
        self.balance = balance

    @cached_property
    def store(self) -> FeatureStore:
        """The store that serves the request; it has the images themselves."""
        return self._find(self.request)

    @cached_property
    def view_stores(self) -> tuple[FeatureStore, ...]:
        """The stores of the views of the training images, in their order; () without views."""
        return tuple(map(self._find, self.request.of_views()))

    def _find(self, request: Request) -> FeatureStore:
        features, patience = request.features, Patience(seconds=self.data.storage_patience)
        return FeatureStore.find(
            features.store, request.manifest, command=request.command, verify=features.verify, patience=patience
        )

    def __getstate__(self) -> dict[str, object]:  # mapped files cannot be sent to spawned processes
        return {name: value for name, value in vars(self).items() if name not in _OPENED}

    def prepare_data(self) -> None:
        """Find the stores on the main process first, so that an error is reported once."""
        _ = self.store, self.view_stores

    def setup(self, stage: str | None = None) -> None:
        """Find the stores."""
        _ = self.widths, self.view_stores

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; `label` is an index into them."""
        return self.store.classes()

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values."""
        return self.store.attributes

    @cached_property
    def widths(self) -> dict[str, int]:
        """Cell name -> `d_in`."""
        available = self.store.manifest.cells
        wanted = self.request.manifest.cells  # a store may have more cells than requested
        return {cell: available[cell] for cell in choose_cells(self._asked, list(wanted))}

    def table(self, split: str) -> FeatureTable:
        """Return all features of one split, in shard order."""
        return concatenate(list(self.iter_tables(split)))

    def iter_tables(self, split: str) -> Iterator[FeatureTable]:
        """Yield the features of one split, one table per shard: mapped, or a copy of the rows of the split."""
        source, cells = self.data.source_of(split), list(self.widths)
        rule = self.request.holdout
        if rule is None or split not in (rule.train, rule.val):
            yield from self.store.iter_shards(source, cells)
            return
        tables = list(self.store.iter_shards(source, cells))
        kept = self._kept(split, tables)
        for table, rows in zip(tables, kept or (), strict=True):
            yield table.select(rows)

    def loader(
        self, split: str, *, shuffle: bool, rank: int = 0, world_size: int = 1, epoch: int | Callable[[], int] = 0
    ) -> "StoredLoader | RowLoader":
        """Return the loader of one split for one rank (see `FeatureSource.loader`).

        With `features.shuffle=rows`, training shuffles single rows and yields `RowBatch`.
        """
        viewed = shuffle and self.has_views and split == self.data.train_split
        rows = self._view_rows if viewed else self._split_rows(split)
        views = self.request.features.views
        one_view = viewed and views.use == "cycle"
        n = rows.n // len(self.view_stores) if one_view else rows.n
        if shuffle and self.request.features.shuffle == "rows":
            return RowLoader(
                rows, self.data.batch_size, epoch, seed=self.seed, rank=rank, world_size=world_size, n=n,
                start=lambda number: views.of_epoch(number) * n if one_view else 0,
            )  # fmt: skip

        values = rows.values(self.balance)[:n] if shuffle and self.balance is not None else None

        def order(number: int) -> Tensor:
            first = views.of_epoch(number) * n if one_view else 0
            if values is not None:
                return first + balanced_order(values, seed=self.seed, epoch=number, rank=rank, world_size=world_size)
            if shuffle:
                return first + train_order(n, seed=self.seed, epoch=number, rank=rank, world_size=world_size)
            return eval_order(n, rank=rank, world_size=world_size)

        return StoredLoader(rows, order, self.data.batch_size, epoch)

    @cached_property
    def _rows(self) -> dict[str, "StoredRows"]:
        return {}

    @cached_property
    def _placed(self) -> dict[str, list[FeatureTable]]:
        return {}

    def _split_rows(self, split: str) -> "StoredRows":
        if split not in self._rows:
            source = self.data.source_of(split)
            if source not in self._placed:
                self._placed[source] = self._place(source, [self.store])
            tables = self._placed[source]
            self._rows[split] = StoredRows(tables, self._kept(split, tables))
        return self._rows[split]

    @cached_property
    def _view_rows(self) -> "StoredRows":
        """The training samples of all views, view by view in the same order."""
        split = self.data.train_split
        tables = self._place(self.data.source_of(split), self.view_stores)
        return StoredRows(tables, self._kept(split, tables))

    def _place(self, source: str, stores: Sequence[FeatureStore]) -> list[FeatureTable]:
        device, processes = self._memory()
        tables = [table for store in stores for table in store.iter_shards(source, list(self.widths))]
        mode = self.request.features.placement
        return list(place_tables(tables, mode, split=source, device=device, processes=processes))

    def _kept(self, split: str, tables: Sequence[FeatureTable]) -> list[Tensor] | None:
        """Return the rows of a split in the tables that the store has for it; None for all of them.

        Raises: ConfigError if `data.val_fraction` leaves a split without a row.
        """
        rule = self.request.holdout
        if rule is None or split not in (rule.train, rule.val):
            return None
        values = self.store.attributes
        kept = []
        for table in tables:
            ids = {} if rule.group is None else {rule.group: table.attributes[rule.group].tolist()}
            kept.append(torch.tensor(rule.rows(split, table.keys, ids, values), dtype=torch.long))
        n, total = sum(map(len, kept)), sum(map(len, tables))
        rule.require(*((total - n, n) if split == rule.val else (n, total - n)))
        return kept

    def _memory(self) -> tuple[torch.device, int]:
        """Return the device of training, and the number of processes that share its memory."""
        if self.trainer is None:
            return choose_device("auto"), 1
        device = self.trainer.strategy.root_device
        return device, self.trainer.num_devices if device.type == "cpu" else 1


class StoredRows:
    """Random access to the samples of several tables; only the requested rows are copied.

    Args:
        tables: the tables, one after the other.
        kept: the rows of each table that exist, ascending; None for all.
    """

    def __init__(self, tables: Sequence[FeatureTable], kept: Sequence[Tensor] | None = None) -> None:
        self.tables = list(tables)
        self._ends = torch.tensor([len(table) for table in self.tables]).cumsum(0)
        self._kept: Tensor | None = None
        if kept is not None:
            starts = [0, *self._ends.tolist()[:-1]]
            self._kept = torch.cat([rows + start for rows, start in zip(kept, starts, strict=True)])

    @property
    def n(self) -> int:
        """The number of samples."""
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of all samples."""
        keys = self.tables[0].keys if len(self.tables) == 1 else [key for table in self.tables for key in table.keys]
        return keys if self._kept is None else [keys[row] for row in self._kept.tolist()]

    def values(self, name: str) -> Int[Tensor, " samples"]:
        """Return the ids of the values of `label` or an attribute, -1 for none.

        Raises: UnknownName for an attribute that the data do not have.
        """
        known = self.tables[0].attributes
        if name != "label" and name not in known:
            raise unknown("balance", name, ("label", *known))
        parts = [(table.label if name == "label" else table.attributes[name]).cpu() for table in self.tables]
        found = torch.cat(parts)
        return found if self._kept is None else found[self._kept]

    def take(self, rows: Int[Tensor, " chosen"]) -> FeatureBatch:
        """Return samples as a batch, in the given order."""
        rows = self._place(rows)
        if len(self.tables) == 1:
            return self.tables[0].take(rows)
        places, parts = [], []
        for table, place, local in self._owners(rows):
            places.append(place)
            parts.append(table.take(local))
        return _reorder(parts, torch.cat(places).argsort())

    def layout(self, cells: Sequence[str]) -> RowLayout:
        """Return the numbering of the rows of some cells."""
        return RowLayout.of(cells, self.tables[0].features)

    def take_rows(self, layout: RowLayout, rows: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_in"]:
        """Return single rows by their numbers in `layout`, in the given order; files are read front to back."""
        first = self.tables[0].features[layout.cells[0]]
        if len(self.tables) == len(layout.cells) == 1:  # one table and one cell
            return select(first, layout.cells[0], self._place(rows // layout.total), rows % layout.total)
        out = torch.empty(len(rows), layout.width, dtype=first.dtype, device=first.device)
        rows, order = rows.sort()
        sample, number = self._place(rows // layout.total), rows % layout.total
        group = layout.group(number)
        counts = group.bincount(minlength=len(layout.cells)).tolist()
        by_cell = group.argsort(stable=True).split(counts)  # once: a mask for each cell would read all rows each time
        for i, (cell, chosen) in enumerate(zip(layout.cells, by_cell, strict=True)):
            if not len(chosen):
                continue
            for table, place, local in self._owners(sample[chosen]):
                mine = chosen[place]
                values = select(table.features[cell], cell, local, number[mine] - layout.starts[i])
                out.index_copy_(0, order[mine].to(out.device), values)
        return out

    def _place(self, samples: Tensor) -> Tensor:
        """Return the places of samples among those of all tables."""
        return samples if self._kept is None else self._kept[samples]

    def _owners(self, samples: Tensor) -> Iterator[tuple[FeatureTable, Tensor, Tensor]]:
        """Yield each table that has some of the samples, the indices of these samples, and their rows in the table."""
        owner = torch.searchsorted(self._ends, samples, right=True)
        counts = owner.bincount(minlength=len(self.tables)).tolist()
        for number, place in enumerate(owner.argsort(stable=True).split(counts)):
            if not len(place):
                continue
            table = self.tables[number]
            yield table, place, samples[place] - (int(self._ends[number]) - len(table))


def _reorder(parts: list[FeatureBatch], order: Tensor) -> FeatureBatch:
    tables = [FeatureTable(part.features, part.keys, part.label, part.attributes, part.captions) for part in parts]
    return concatenate(tables).take(order)


class StoredLoader(EpochLoader):
    """The batches of one rank; `order(epoch)` returns its row numbers."""

    def __init__(
        self, rows: StoredRows, order: Callable[[int], Tensor], batch_size: int, epoch: int | Callable[[], int]
    ) -> None:
        super().__init__(epoch)
        self.rows, self.order, self.batch_size = rows, order, batch_size
        self._n = -(-len(order(0)) // batch_size)

    def __len__(self) -> int:
        return self._n

    def _batches(self, epoch: int, skip: int) -> Iterator[FeatureBatch]:
        for rows in self.order(epoch).split(self.batch_size)[skip:]:
            yield self.rows.take(rows)


class RowLoader(EpochLoader):
    """The batches of single rows of one rank: an epoch is one permutation of the rows of all samples.

    Number and sizes of batches are those of whole samples; the order depends on (seed, epoch) alone. A permutation is
    created on its first use, one for each total number of rows of a set of cells.

    Args:
        n: number of samples of an epoch; all if None.
        start: epoch -> its first sample.
    """

    def __init__(
        self,
        rows: StoredRows,
        batch_size: int,
        epoch: int | Callable[[], int] = 0,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        n: int | None = None,
        start: Callable[[int], int] = lambda epoch: 0,
    ) -> None:
        super().__init__(epoch)
        self.rows, self.batch_size, self._samples, self._start = rows, batch_size, n or rows.n, start
        self._share = -(-self._samples // world_size)
        self._order = partial(RowOrder, seed=seed, rank=rank, world_size=world_size)

    def __len__(self) -> int:
        return (self._share + self.batch_size - 1) // self.batch_size

    def _batches(self, epoch: int, skip: int) -> Iterator[RowBatch]:
        orders: dict[int, RowOrder] = {}
        for step in range(skip, len(self)):
            n = min(self.batch_size, self._share - step * self.batch_size)
            yield RowBatch(partial(self._take, orders, epoch, step), self.rows.keys, n)

    def _take(self, orders: dict[int, RowOrder], epoch: int, step: int, cells: tuple[str, ...]) -> RowValues:
        layout = self.rows.layout(cells)
        n, size = self._samples * layout.total, self.batch_size * layout.total
        if n not in orders:
            orders[n] = self._order(n, epoch=epoch)
        rows = orders[n].take(step * size, (step + 1) * size) + self._start(epoch) * layout.total
        sample, number = rows // layout.total, rows % layout.total
        return RowValues(self.rows.take_rows(layout, rows), layout.group(number), sample, number)
