"""A shard set held in memory, for training on it many times over. Owns the order of such an epoch.

Probes stream (`features.live`); here a small set is decoded once, because a diffusion model passes over it a hundred
times and decoding would cost more than the passes.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import SampleStream

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageTable:
    """One split in memory.

    Attributes:
        images: RGB, 8 bits a channel.
        keys: identity of each sample.
        captions: all captions of each sample, the main one first.
        attributes: by sample, value by attribute name.
    """

    images: UInt8[Tensor, "sample 3 height width"]
    keys: list[str]
    captions: list[tuple[str, ...]]
    attributes: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.keys)

    def floats(self, rows: Tensor | slice) -> Float[Tensor, "batch 3 height width"]:
        """Return some images in [0, 1]."""
        return self.images[rows].float() / 255

    def groups(self, attribute: str | None) -> list[str]:
        """Name the drawing each sample is a variant of: its value of an attribute, its own key where it has none."""
        return [sample.get(attribute or "", key) for key, sample in zip(self.keys, self.attributes, strict=True)]


def load_table(data: DataConfig, split: str, *, resolution: int, captioned: bool = False) -> ImageTable:
    """Decode a split into memory, in shard order.

    Args:
        captioned: refuse samples without a caption.
    Raises: EmptyClass if no sample is left, SampleError for one without a caption, and what the stream raises.
    """
    stream = SampleStream(
        ShardSet.load(data.path), split, resolution=resolution, fields=data.fields, on_error=data.on_error,
        limit=data.limit,
    )  # fmt: skip
    samples = list(stream)
    for message in stream.skipped.values():
        _log.warning("left out: %s", message)
    if not samples:
        raise EmptyClass(f"split '{split}' of '{data.path}' has no sample without a fault.")
    silent = [sample.key for sample in samples if not sample.captions]
    if captioned and silent:
        raise SampleError(
            f"split '{split}' of '{data.path}': {len(silent)} samples have no caption, '{silent[0]}' first."
        )
    pixels = np.stack([np.asarray(sample.image) for sample in samples])
    return ImageTable(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        keys=[sample.key for sample in samples],
        captions=[sample.captions for sample in samples],
        attributes=[sample.attributes for sample in samples],
    )


class RowIndices(Dataset[Tensor]):
    """Row numbers; a batch is a tensor of them, and the module takes the rows from its table."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor(row)


class RowNumbers(EpochLoader):
    """Batches of row numbers in an order that (seed, epoch) fixes; the last, smaller one is dropped.

    As every `EpochLoader` it has a state, so an interrupted epoch goes on with the batches that are left of it.

    Args:
        n: rows.
        batch_size: rows a batch.
        seed: of the order.
        weights: draw n rows an epoch by these weights, with replacement; None takes each row once.
        epoch: the epoch, or a function that tells it when an epoch begins.
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
        """Return the rows of one epoch."""
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        if self.weights is None:
            return torch.randperm(self.n, generator=generator)
        return torch.multinomial(self.weights, self.n, replacement=True, generator=generator)

    def _batches(self, epoch: int, skip: int) -> Iterator[Tensor]:
        yield from self.order(epoch).split(self.batch_size)[skip : len(self)]


def balance_weights(attributes: Sequence[dict[str, str]], name: str, power: float) -> Float[Tensor, " sample"]:
    """Weigh each sample by n ** -power, n being the number of samples that share its value of an attribute.

    power=0 draws all samples alike, power=1 all values. Samples without a value stand alone.
    Raises: UnknownName if no sample has the attribute.
    """
    found = {key for sample in attributes for key in sample}
    if name not in found:
        raise unknown("attribute", name, sorted(found))
    counts = Counter(sample[name] for sample in attributes if name in sample)
    return torch.tensor([counts[sample[name]] ** -power if name in sample else 1.0 for sample in attributes])


def warn_unused(data: DataConfig) -> None:
    """Warn of loader processes that are asked for and not started; they would change no result."""
    if data.num_workers:
        _log.warning(
            "data.num_workers=%d is not used: shards are decoded once, in this process, and kept.", data.num_workers
        )


def epoch_of(source: lightning.LightningDataModule) -> Callable[[], int]:
    """Return what tells the epoch of the run that a DataModule belongs to; 0 without a run."""
    return lambda: 0 if source.trainer is None else source.trainer.current_epoch


class ImagesInMemory(GenerativeData):
    """Training and validation tables of a shard set; batches are row numbers.

    Args:
        data: which shards, and the batch size.
        resolution: side of the images in pixels.
        seed: seed of the order.
        captioned: refuse samples without a caption.
        balance: an attribute and a power: draw training samples by `balance_weights`. None: each once an epoch.
    Raises: ConfigError if the training split is smaller than a batch, and what `load_table` raises.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        resolution: int,
        seed: int,
        captioned: bool = False,
        balance: tuple[str, float] | None = None,
    ) -> None:
        super().__init__()
        warn_unused(data)
        self.data, self.resolution, self.seed = data, resolution, seed
        self.train: ImageTable = load_table(data, data.train_split, resolution=resolution, captioned=captioned)
        self.val: ImageTable = load_table(data, data.val_split, resolution=resolution, captioned=captioned)
        if len(self.train) < data.batch_size:
            raise ConfigError(
                f"data.batch_size={data.batch_size} is more than the {len(self.train)} samples of split"
                f" '{data.train_split}'.",
                "only whole batches are trained on",
            )
        self._weights = None if balance is None else balance_weights(self.train.attributes, *balance)

    def train_dataloader(self) -> RowNumbers:
        """Yield shuffled batches of row numbers; the last, smaller one is dropped."""
        return RowNumbers(
            len(self.train), self.data.batch_size, seed=self.seed, weights=self._weights, epoch=epoch_of(self)
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Yield all validation rows in order."""
        return DataLoader(RowIndices(len(self.val)), batch_size=self.data.batch_size)
