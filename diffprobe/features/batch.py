"""Containers of features: batches of samples or of single rows for gradient training, tables of whole splits.

Batches are created by live.py and stored.py, tables by reader.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError


@dataclass
class FeatureBatch:
    """Features of some samples; all fields have the samples in the same order.

    Attributes:
        features: cell name -> features, float32; `d_in` values per sample when pooled, a map when `pool=none`.
        keys: key of each sample.
        label: class index in the data set's `classes`, -1 where the sample has none.
        attributes: attribute name -> index in the data set's `attributes[name]`, -1 where the sample has none.
        captions: caption of each sample, "" for none; [] where they are not known.
    """

    features: dict[str, Float[Tensor, "batch ..."]]
    keys: list[str]
    label: Int[Tensor, " batch"]
    attributes: dict[str, Int[Tensor, " batch"]]
    captions: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "FeatureBatch":
        """Return the batch with its tensors on `device`."""

        def move(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=non_blocking)

        return FeatureBatch(
            features={cell: move(values) for cell, values in self.features.items()},
            keys=self.keys,
            label=move(self.label),
            attributes={name: move(values) for name, values in self.attributes.items()},
            captions=self.captions,
        )


class RowValues(NamedTuple):
    """Single rows of some cells, with their origin."""

    x: Float[Tensor, "rows d_in"]
    """The features."""
    group: Int[Tensor, " rows"]
    """Index of the cell."""
    sample: Int[Tensor, " rows"]
    """Index of the sample in the batch's keys."""
    number: Int[Tensor, " rows"]
    """Number of the row among all rows of its sample, over cells, draws and positions."""


class RowBatch:
    """Single rows of many samples, gathered for the cells that a probe requests.

    Probes that train together on different cells get the same rows as in separate runs.

    Args:
        take: returns the rows of some cells.
        keys: keys of the samples that `RowValues.sample` indexes.
        n: number of samples with an equal number of rows.
    """

    def __init__(self, take: Callable[[tuple[str, ...]], RowValues], keys: list[str], n: int) -> None:
        self.keys, self._take, self._n = keys, take, n
        self._device: torch.device | str | None = None
        self._taken: dict[tuple[str, ...], RowValues] = {}

    def __len__(self) -> int:
        return self._n

    def rows(self, cells: Sequence[str]) -> RowValues:
        """Return the rows of some cells of equal width, in training order."""
        cells = tuple(cells)
        if cells not in self._taken:
            found = self._take(cells)
            device = found.x.device if self._device is None else self._device
            self._taken[cells] = RowValues(*(part.to(device) for part in found))
        return self._taken[cells]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowBatch":
        """Return the batch with rows on `device`."""
        moved = RowBatch(self._take, self.keys, self._n)
        moved._device = device
        return moved

    def __getattr__(self, name: str) -> NoReturn:
        if name in FeatureBatch.__dataclass_fields__:
            raise ConfigError(
                f"this probe needs the {name} of whole samples; a batch of single rows has none.",
                "features.shuffle=rows is for sparse autoencoders",
                fix="features.shuffle=samples",
            )
        raise AttributeError(name)


@dataclass
class FeatureTable:
    """All features of one split, with keys, captions and shards of the samples.

    Attributes:
        features: cell name -> features, float32.
        keys, label, attributes: as in `FeatureBatch`.
        captions: caption of each sample, "" for none.
        shards: source shard file of each sample, relative to the shard set's root.
    """

    features: dict[str, Float[Tensor, "samples ..."]]
    keys: list[str]
    label: Int[Tensor, " samples"]
    attributes: dict[str, Int[Tensor, " samples"]]
    captions: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Int[Tensor, " chosen"]) -> FeatureBatch:
        """Return the given rows as a batch, in the given order."""
        return FeatureBatch(
            features={cell: values[rows.to(values.device)] for cell, values in self.features.items()},
            keys=[self.keys[row] for row in rows.tolist()],
            label=self.label[rows.to(self.label.device)],
            attributes={name: values[rows.to(values.device)] for name, values in self.attributes.items()},
            captions=[self.captions[row] for row in rows.tolist()] if self.captions else [],
        )

    def select(self, rows: Int[Tensor, " chosen"]) -> "FeatureTable":
        """Return the table of the given rows, in the given order."""
        batch, chosen = self.take(rows), rows.tolist()
        return FeatureTable(
            batch.features, batch.keys, batch.label, batch.attributes,
            captions=batch.captions,
            shards=[self.shards[row] for row in chosen] if self.shards else [],
        )  # fmt: skip


def concatenate(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Concatenate tables of equal cells and attributes. A single table is not copied."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    return FeatureTable(
        features={cell: torch.cat([table.features[cell] for table in tables]) for cell in first.features},
        keys=_join(table.keys for table in tables),
        label=torch.cat([table.label for table in tables]),
        attributes={name: torch.cat([table.attributes[name] for table in tables]) for name in first.attributes},
        captions=_join(table.captions for table in tables),
        shards=_join(table.shards for table in tables),
    )


def _join(lists: Iterable[list[str]]) -> list[str]:
    return [item for part in lists for item in part]
