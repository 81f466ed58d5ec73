"""A shard set decoded into memory, and epochs of row indices over it, for generative training.

A diffusion model passes over a small set a hundred times, so images are decoded once. Probes stream instead
(`features/live.py`).
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, EmptyClass, SampleError, unknown
from diffprobe.core.rng import derive_seed
from diffprobe.features.datamodule import EpochLoader
from diffprobe.generative.run_settings import GenerativeData
from diffprobe.shards.holdout import open_view
from diffprobe.shards.stream import SampleStream

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageTable:
    """One split in memory.

    Attributes:
        images: RGB, 8 bits per channel.
        keys: key of each sample.
        captions: all captions of each sample, the main one first.
        attributes: attributes of each sample, name -> value.
        class_names: class of each sample, "" for none; empty where nothing reads them.
    """

    images: UInt8[Tensor, "sample 3 height width"]
    keys: list[str]
    captions: list[tuple[str, ...]]
    attributes: list[dict[str, str]]
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def to_float(self, rows: Tensor | slice) -> Float[Tensor, "batch 3 height width"]:
        """Return the images of some rows as floats in [0, 1]."""
        return self.images[rows].float() / 255

    def take(self, rows: Int[Tensor, " row"]) -> "ImageTable":
        """Return the table of some rows, in their order."""
        chosen = rows.tolist()
        return ImageTable(
            images=self.images[rows],
            keys=[self.keys[row] for row in chosen],
            captions=[self.captions[row] for row in chosen],
            attributes=[self.attributes[row] for row in chosen],
            class_names=[self.class_names[row] for row in chosen] if self.class_names else [],
        )

    def groups(self, attribute: str | None) -> list[str]:
        """Return the group of each sample: its value of an attribute, or its key without a value."""
        return [sample.get(attribute or "", key) for key, sample in zip(self.keys, self.attributes, strict=True)]


def load_table(data: DataConfig, split: str, *, resolution: int, captioned: bool = False) -> ImageTable:
    """Decode a split into memory, in shard order.

    Args:
        data: which shards, fields and limit.
        split: name of the split.
        resolution: side length of the images in pixels.
        captioned: whether every sample needs a caption.
    Raises: EmptyClass for a split without a readable sample, SampleError for a missing caption, and the errors of the
        stream.
    """
    stream = SampleStream(
        open_view(data), split, resolution=resolution, fields=data.fields, on_error=data.on_error,
        limit=data.limit, caps=data.caps, verify=data.verify,
    )  # fmt: skip
    samples = list(stream)
    for message in stream.skipped.values():
        _log.warning("skipped: %s", message)
    if not samples:
        raise EmptyClass(f"split '{split}' of '{data.path}' has no readable sample.")
    uncaptioned = [sample.key for sample in samples if not sample.captions]
    if captioned and uncaptioned:
        raise SampleError(
            f"split '{split}' of '{data.path}': {len(uncaptioned)} samples have no caption, the first is "
            f"'{uncaptioned[0]}'."
        )
    pixels = np.stack([np.asarray(sample.image) for sample in samples])
    return ImageTable(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        keys=[sample.key for sample in samples],
        captions=[sample.captions for sample in samples],
        attributes=[sample.attributes for sample in samples],
        class_names=[sample.class_name for sample in samples],
    )


class ClassCaptions(Protocol):
    """Captions by class and a long-tailed subset (`long_tail.ClassesConfig`)."""

    def captioned(self, table: ImageTable) -> ImageTable:
        """Return the table with captions by class."""

    def training_table(self, table: ImageTable) -> ImageTable:
        """Return the subset of a training split, with captions by class."""


class RowIndexDataset(Dataset[Tensor]):
    """Row indices as samples; the module looks the rows up in its table."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor(row)


class RowIndexLoader(EpochLoader):
    """Batches of row indices in an order fixed by (seed, epoch); an incomplete last batch is dropped.

    Like every `EpochLoader` it is stateful: a resumed epoch continues with its remaining batches.

    Args:
        n: number of rows.
        batch_size: rows per batch.
        seed: seed of the order.
        weights: sample n rows per epoch by these weights, with replacement; None takes each row once.
        epoch: the epoch, or a function that returns it when an epoch begins.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        weights: Float[Tensor, " n"] | None = None,
        epoch: int | Callable[[], int],
    ) -> None:
        super().__init__(epoch)
        self.n, self.batch_size, self.seed, self.weights = n, batch_size, seed, weights

    def __len__(self) -> int:
        return self.n // self.batch_size

    def order(self, epoch: int) -> Int[Tensor, " n"]:
        """Return the row indices of one epoch."""
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        if self.weights is None:
            return torch.randperm(self.n, generator=generator)
        return torch.multinomial(self.weights, self.n, replacement=True, generator=generator)

    def _batches(self, epoch: int, skip: int) -> Iterator[Tensor]:
        yield from self.order(epoch).split(self.batch_size)[skip : len(self)]


def balance_weights(attributes: Sequence[dict[str, str]], name: str, power: float) -> Float[Tensor, " sample"]:
    """Return the weight n ** -power of each sample, n being the number of samples with the same attribute value.

    With power=0 all samples are equally likely, with power=1 all values. A sample without a value has weight 1.
    Raises: UnknownName if no sample has the attribute.
    """
    found = {key for sample in attributes for key in sample}
    if name not in found:
        raise unknown("attribute", name, sorted(found))
    counts = Counter(sample[name] for sample in attributes if name in sample)
    return torch.tensor([counts[sample[name]] ** -power if name in sample else 1.0 for sample in attributes])


def warn_unused_workers(data: DataConfig) -> None:
    """Log a warning if loader processes are configured: none are started."""
    if data.num_workers:
        _log.warning(
            "data.num_workers=%d has no effect: shards are decoded once, in the main process.", data.num_workers
        )


def epoch_getter(source: lightning.LightningDataModule) -> Callable[[], int]:
    """Return a function that returns the current epoch of a DataModule's trainer; 0 without a trainer."""
    return lambda: 0 if source.trainer is None else source.trainer.current_epoch


class ImageTableData(GenerativeData):
    """Training and validation tables of a shard set; batches are row indices.

    Args:
        data: which shards, and the batch size.
        resolution: side length of the images in pixels.
        seed: seed of the order.
        captioned: whether every sample needs a caption.
        balance: attribute and power of `balance_weights` for training samples; None takes each once per epoch.
        classes: captions by class, and the subset of the training split; None keeps captions and samples.
        train: the training split as `load_table` returns it; None reads it.
    Raises: ConfigError if the training split is smaller than a batch, and the errors of `load_table`.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        resolution: int,
        seed: int,
        captioned: bool = False,
        balance: tuple[str, float] | None = None,
        classes: ClassCaptions | None = None,
        train: ImageTable | None = None,
    ) -> None:
        super().__init__()
        warn_unused_workers(data)
        self.data, self.resolution, self.seed = data, resolution, seed
        if train is None:
            train = load_table(data, data.train_split, resolution=resolution, captioned=captioned)
        self.train: ImageTable = train
        self.val: ImageTable = load_table(data, data.val_split, resolution=resolution, captioned=captioned)
        if classes is not None:
            self.train, self.val = classes.training_table(self.train), classes.captioned(self.val)
        if len(self.train) < data.batch_size:
            raise ConfigError(
                f"data.batch_size={data.batch_size} is more than the {len(self.train)} samples of split"
                f" '{data.train_split}'.",
                "training uses full batches only",
            )
        self._weights = None if balance is None else balance_weights(self.train.attributes, *balance)

    def train_dataloader(self) -> RowIndexLoader:
        """Return shuffled batches of row indices; an incomplete last batch is dropped."""
        return RowIndexLoader(
            len(self.train), self.data.batch_size, seed=self.seed, weights=self._weights, epoch=epoch_getter(self)
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return all validation rows in order."""
        return DataLoader(RowIndexDataset(len(self.val)), batch_size=self.data.batch_size)
