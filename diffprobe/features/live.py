"""LiveFeatures: features computed while training, equal to those of a store.

The loader yields images; the frozen backbone runs in `on_after_batch_transfer` on the probe's device, so that training
code receives feature batches only.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from diffprobe.core.errors import ConfigError
from diffprobe.features.batch import FeatureBatch, FeatureTable, concatenate
from diffprobe.features.cell_selection import choose_cells
from diffprobe.features.datamodule import EpochLoader, FeatureSource
from diffprobe.features.extract import shard_batches, shard_loader, to_features
from diffprobe.features.request import shard_entries
from diffprobe.features.samplers import check_ranks
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.stream import ImageLoader, SampleStream, make_loader


class LiveFeatures(FeatureSource):
    """Feature batches computed while training (see `FeatureSource` for the arguments).

    Training batches come from a shuffled stream (`data.shuffle_buffer`). Its order depends on (seed, epoch), the number
    of processes and the number of loader workers; the features of a sample depend on none of them. With
    `features.views` an epoch reads the view of its number.
    """

    def setup(self, stage: str | None = None) -> None:
        """Open shards and backbone.

        Raises: ConfigError for samples without what the condition needs, or a precision that rounds the images before
            the backbone.
        """
        self.request.check_values()
        self._open()
        precision = None if self.trainer is None else str(self.trainer.precision)
        if precision in ("16-true", "bf16-true", "64-true", "transformer-engine"):
            raise ConfigError(
                f"trainer.precision={precision} rounds the images before the backbone.",
                "allowed with features.source=live: 32-true, bf16-mixed, 16-mixed",
                fix=f"trainer.precision={precision.replace('true', 'mixed')}, or features.source=stored",
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; `label` is an index into them."""
        return self.request.shard_set.classes

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values."""
        return self.request.shard_set.attributes

    @cached_property
    def widths(self) -> dict[str, int]:
        """Cell name -> `d_in`."""
        widths = self.request.plan.widths
        chosen = choose_cells(self._asked, list(widths))
        if len(chosen) < len(widths):
            self.request = self.request.narrowed(chosen)
        return {cell: widths[cell] for cell in chosen}

    def on_after_batch_transfer(self, batch: ImageBatch | FeatureBatch, dataloader_idx: int) -> FeatureBatch:
        """Compute the features of a batch of images on the probe's device.

        Raises: ConfigError if `backbone.device` is another device.
        """
        if isinstance(batch, FeatureBatch):
            return batch
        device, asked = batch.images.device, self.request.backbone.device
        if asked != "auto" and not _is_same(torch.device(asked), device):
            raise ConfigError(
                f"backbone.device={asked}, but live features are computed on the probe's device, {device}.",
                fix="remove backbone.device, or set features.source=stored",
            )
        self._open()
        self.request.extractor.to(device)
        return self._features(batch)

    def table(self, split: str) -> FeatureTable:
        """Return all features of one split in shard order, computed now."""
        return concatenate(list(self.iter_tables(split)))

    def iter_tables(self, split: str) -> Iterator[FeatureTable]:
        """Yield the features of one split in shard order, computed now, one table per batch."""
        self._open()
        for shard in shard_entries(self.request.view, split, self.data.limit):
            for item in shard_batches(self.request, shard_loader(self.request, shard, shard_set=self.request.view)):
                batch = self._chosen(item.batch)
                yield FeatureTable(
                    features={cell: values.cpu() for cell, values in batch.features.items()},
                    keys=batch.keys,
                    label=batch.label,
                    attributes=batch.attributes,
                    captions=item.captions,
                    shards=[shard.file] * len(batch),
                )

    def loader(
        self, split: str, *, shuffle: bool, rank: int = 0, world_size: int = 1, epoch: int | Callable[[], int] = 0
    ) -> "LiveLoader":
        """Return the loader of one split for one rank; it yields `ImageBatch`; the hook computes the features."""
        shard_set, data = self.request.view, self.data
        if not shuffle:
            check_ranks(sum(shard.n for shard in shard_entries(shard_set, split, data.limit)), world_size)
        stream = SampleStream(
            shard_set,
            split,
            resolution=self.request.plan.resolution,
            fields=self.request.fields,
            rank=rank,
            world_size=world_size,
            shuffle_buffer=data.shuffle_buffer if shuffle else 0,
            seed=self.seed,
            on_error=data.on_error,
            limit=data.limit,
            equal=shuffle,
            caps=data.caps,
            require=self.request.required,
            verify=data.verify,
            views=self.request.batch_views if shuffle and split == data.train_split else None,
        )
        return LiveLoader(make_loader(stream, data.batch_size, data.num_workers), epoch)

    def batches(self, split: str, **options: int) -> Iterator[FeatureBatch]:
        """Yield the evaluation batches of a split as features, without a Trainer, on the backbone's device.

        Args:
            options: rank, world_size.
        """
        self._open()
        images: Any
        for images in self.loader(split, shuffle=False, **options):
            yield self._features(images.to(self.request.extractor.device))

    def _open(self) -> None:
        _ = self.widths  # first, since it restricts the request to the chosen cells
        _ = self.request.extractor

    def _features(self, images: ImageBatch) -> FeatureBatch:
        with torch.autocast(images.images.device.type, enabled=False):  # backbone.dtype sets the precision
            return self._chosen(to_features(self.request, images))

    def _chosen(self, batch: FeatureBatch) -> FeatureBatch:
        features = {cell: batch.features[cell] for cell in self.widths}
        return FeatureBatch(features, batch.keys, batch.label, batch.attributes, batch.captions)


def _is_same(asked: torch.device, device: torch.device) -> bool:
    """Return whether a device matches the requested one; without an index, any of its type does."""
    return asked.type == device.type and (asked.index is None or device.index in (None, asked.index))


class LiveLoader(EpochLoader):
    """The image batches of one rank."""

    def __init__(self, images: ImageLoader, epoch: int | Callable[[], int]) -> None:
        super().__init__(epoch)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def _batches(self, epoch: int, skip: int) -> Iterator[ImageBatch]:
        self.images.set_epoch(epoch)
        yield from islice(self.images, skip, None)
