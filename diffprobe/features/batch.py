"""The forms in which features travel: a batch for probes that learn, of samples or of single rows, and a table for
those that need all at once.

Owns the shapes and the row arithmetic. Batches are made by live.py and stored.py, tables by reader.py.
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
    """Features of some samples, rows in the same order everywhere.

    Attributes:
        features: cell name -> features, float32; `d_in` values a sample when pooled, a map when `pool=none`.
        keys: identity of each sample.
        label: class index in the data set's `classes`, -1 where the sample has none.
        attributes: attribute name -> index in the data set's `attributes[name]`, -1 where the sample has none.
    """

    features: dict[str, Float[Tensor, "batch ..."]]
    keys: list[str]
    label: Int[Tensor, " batch"]
    attributes: dict[str, Int[Tensor, " batch"]]

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
        )


class RowValues(NamedTuple):
    """Single rows of some cells, and where each comes from."""

    x: Float[Tensor, "rows d_in"]
    """The features."""
    group: Int[Tensor, " rows"]
    """Index of the cell."""
    sample: Int[Tensor, " rows"]
    """Index of the sample in the batch's keys."""
    number: Int[Tensor, " rows"]
    """Number of the row among all rows of its sample, over cells, draws and places."""


class RowBatch:
    """Single rows of many samples. Which ones is settled; they are gathered when a probe says of which cells.

    Probes that train together on different cells so each get the rows that they would get alone.

    Args:
        take: gathers the rows of some cells.
        keys: identity of the samples that `RowValues.sample` counts.
        n: samples whose rows would be as many.
    """

    def __init__(self, take: Callable[[tuple[str, ...]], RowValues], keys: list[str], n: int) -> None:
        self.keys, self._take, self._n = keys, take, n
        self._device: torch.device | str | None = None
        self._taken: dict[tuple[str, ...], RowValues] = {}

    def __len__(self) -> int:
        return self._n

    def rows(self, cells: Sequence[str]) -> RowValues:
        """Return the rows of some cells of one width, in the order of training."""
        cells = tuple(cells)
        if cells not in self._taken:
            found = self._take(cells)
            device = found.x.device if self._device is None else self._device
            self._taken[cells] = RowValues(*(part.to(device) for part in found))
        return self._taken[cells]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowBatch":
        """Return the batch such that it gives rows on `device`."""
        moved = RowBatch(self._take, self.keys, self._n)
        moved._device = device
        return moved

    def __getattr__(self, name: str) -> NoReturn:
        if name in FeatureBatch.__dataclass_fields__:
            raise ConfigError(
                f"a batch of single rows has no {name} of whole samples, which this probe needs.",
                "features.shuffle=rows is for sparse autoencoders",
                fix="features.shuffle=samples",
            )
        raise AttributeError(name)


@dataclass
class FeatureTable:
    """All features of one split, with what analysis needs to walk back to the images.

    Attributes:
        features: cell name -> features, float32.
        keys, label, attributes: as in `FeatureBatch`.
        captions: caption of each sample, "" where it has none.
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
        )


def concatenate(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Join tables of the same cells and attributes below each other. Copies unless there is one only."""
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
