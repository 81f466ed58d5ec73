"""Fills a feature store in one pass over the shards: every image goes through the backbone once, for all cells.

Owns the pass over one shard, the progress bar and the check for free space. The bytes are writer.py's.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError, RunFailed, StoreIncomplete, StoreMismatch
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import ShardEntry
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request
from diffprobe.features.writer import ExtractedBatch, StoreWriter
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import ImageLoader, SampleStream, make_loader

_SPACE_MARGIN = 1.1


class Bar(Protocol):
    """What shows how far extraction is."""

    def update(self, n: int, /) -> object:
        """Advance by `n` images."""


MakeBar = Callable[[int], AbstractContextManager[Bar]]
"""Takes the number of images to come."""


def extract(
    backbone: BackboneConfig,
    data: DataConfig,
    features: FeaturesConfig,
    *,
    splits: Sequence[str] | None = None,
    process: tuple[int, int] = (0, 1),
    progress: bool | MakeBar = True,
) -> Path:
    """Write the store of a request, or what of it is missing, and return its folder.

    A store that holds all that is asked for already (more cells do no harm) is returned at once. A second process with
    another `process` writes its own part of the same store; the two need not know of each other.

    Args:
        splits: splits to extract; those of `data` if None.
        process: (i, n): write the shards i, i + n, i + 2n, ...
        progress: show a bar with images a second and the time left, on stderr; or the maker of a bar to show instead,
            called only if there is something to extract.

    Raises: ConfigError for a bad `process`, RunFailed if the disk is too small, and what shards and backbone raise.
    """
    index, count = process
    if not 0 <= index < count:
        raise ConfigError(f"process {index}/{count} does not exist.", f"allowed: 0/{count} to {count - 1}/{count}")
    request = Request(backbone, data, features, splits)
    served = _served(request)
    if served is not None:
        return served
    writer = StoreWriter(Path(features.store), request.manifest)
    pending = writer.pending(process)
    with _bar(sum(shard.n for shard in pending), progress) as bar:
        space = _SpaceCheck(writer.path, sum(shard.n for shard in pending))
        for shard in pending:
            loader = shard_loader(request, shard)
            batches = _watched(shard_batches(request, loader), bar, space)
            writer.write(shard, batches, left_out=loader.skipped)
    writer.finish()
    return writer.path


def shard_loader(request: Request, shard: ShardEntry) -> ImageLoader:
    """Make the loader of one source shard, in shard order.

    At most one worker decodes: two would interleave their batches, and the order of rows is part of a store's bytes.
    """
    stream = SampleStream(
        request.shard_set,
        shard.split,
        resolution=request.plan.resolution,
        fields=request.fields,
        on_error=request.data.on_error,
        limit=request.data.limit,
        shard_subset=[shard.file],
    )
    return make_loader(stream, request.data.batch_size, min(request.data.num_workers, 1))


def shard_batches(request: Request, loader: ImageLoader) -> Iterator[ExtractedBatch]:
    """Yield the features of a shard's samples in shard order, as the backbone's device left them."""
    for images in loader:
        yield ExtractedBatch(to_features(request, images), images.captions)


def to_features(request: Request, images: ImageBatch) -> FeatureBatch:
    """Run the backbone on a batch of images."""
    features = request.extractor(
        images.images,
        keys=images.keys,
        captions=images.captions,
        labels=images.label.tolist(),
        columns=text_columns(request.shard_set, images),
    )
    return FeatureBatch(features=features, keys=images.keys, label=images.label, attributes=images.attributes)


def text_columns(shard_set: ShardSet, images: ImageBatch) -> dict[str, list[str | None]]:
    """Return the texts of a batch by column: `caption`, `class_name` and the attributes; None where there is none."""
    columns: dict[str, list[str | None]] = {
        "caption": [caption or None for caption in images.captions],
        "class_name": _named(shard_set.classes, images.label),
    }
    for name, ids in images.attributes.items():
        columns.setdefault(name, _named(shard_set.attributes[name], ids))
    return columns


def _named(names: Sequence[str], ids: Tensor) -> list[str | None]:
    return [names[i] if i >= 0 else None for i in ids.tolist()]


def _served(request: Request) -> Path | None:
    try:
        store = FeatureStore.find(request.features.store, request.manifest)
    except (StoreIncomplete, StoreMismatch):  # there is none, or it is not complete: that is what extraction is for
        return None
    return store.path


class _SpaceCheck:
    """Compares the bytes to come with the free ones, once the first batch tells the size of a sample."""

    def __init__(self, folder: Path, n: int) -> None:
        self._folder, self._n, self._done = folder, n, False

    def __call__(self, batch: FeatureBatch) -> None:
        if self._done:
            return
        self._done = True
        sample = sum(4 * values[0].numel() for values in batch.features.values())
        need, free = int(self._n * sample * _SPACE_MARGIN), shutil.disk_usage(self._folder).free
        if need > free:
            raise RunFailed(
                f"the features need {need / 1e9:.2f} GB, and '{self._folder}' has {free / 1e9:.2f} GB left.",
                f"{self._n:,} samples of {sample:,} bytes",
                fix="choose another disk with features.store=FOLDER, or read fewer taps and timesteps",
            )


def _watched(batches: Iterator[ExtractedBatch], bar: Bar, space: _SpaceCheck) -> Iterator[ExtractedBatch]:
    for item in batches:
        space(item.batch)
        yield item
        bar.update(len(item.batch))


def _bar(n: int, progress: bool | MakeBar) -> AbstractContextManager[Bar]:
    if callable(progress):
        return progress(n)
    from tqdm import tqdm

    bar: Any = tqdm(total=n, unit="image", desc="extract", disable=not progress, dynamic_ncols=True, smoothing=0.1)
    return bar  # type: ignore[no-any-return]
