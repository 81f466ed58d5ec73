"""Fill a feature store in one pass over the shards: every image goes through the backbone once, for all cells.

Files are written by writer.py, cached latents by latent_cache.py, and the free space is checked by disk_space.py.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from diffprobe.backbones.cpu_kernels import KernelChoice
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.byte_size import folder_bytes, size
from diffprobe.core.errors import ConfigError, StoreIncomplete, StoreMismatch
from diffprobe.core.heartbeat import heartbeat_path
from diffprobe.core.progress import Announce, Bar, MakeBar, ProgressDisplay
from diffprobe.core.restarts import note_start
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.disk_space import Need, check_space, features_need, latents_need
from diffprobe.features.kernel_record import record_kernels, settle_kernels
from diffprobe.features.latent_cache import CELL, LatentCache
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.massive_channels import KEY as MASSIVE
from diffprobe.features.massive_channels import from_recorded, notes
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request, request_texts
from diffprobe.features.writer import MANIFEST, ExtractedBatch, StoreWriter, remove_leftovers, shard_folder
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import ImageLoader, SampleStream, make_loader, require_empty_shards

Batch = TypeVar("Batch", ImageBatch, ExtractedBatch)


def extract(
    backbone: BackboneConfig,
    data: DataConfig,
    features: FeaturesConfig,
    *,
    splits: Sequence[str] | None = None,
    process: tuple[int, int] = (0, 1),
    progress: bool | MakeBar = True,
    announce: Announce = lambda line: None,
) -> Path:
    """Write the feature store of a request, or its missing part, and return its folder (that of the images).

    A complete store that covers the request (it may have more cells) is returned at once. Processes with different
    `process` values write different parts of one store without communication. With `features.latent_cache` the VAE's
    output is cached there, and images with cached latents are not decoded again. With `features.views` a further store
    is written for each view of the training images.

    Args:
        splits: splits to extract; those of `data` if None.
        process: (i, n): write the shards i, i + n, i + 2n, ...
        progress: True draws a bar on stderr (images per second, time left); a function replaces the bar and is called
            only if there is something to extract.
        announce: receives lines of text: the size to be written, what is reused, and a summary at the end.

    Raises: ConfigError for a bad `process`, RunFailed if the disk is too small, or for a job that restarts without
        progress, and what shards and backbone raise.
    """
    index, count = require_process(process)
    whole = Request(backbone, data, features, splits)
    parts = [_Part(request) for request in [whole, *whole.of_views()]]
    unserved = [part for part in parts if not part.serve()]
    if not unserved:
        announce(f"the store is complete: {parts[0].path}{_views_note(parts)}")
        return parts[0].path
    whole.check_values()
    for split in whole.splits:
        require_empty_shards(whole.shard_set, split, whole.data.caps)
    stores = [part.path for part in unserved]
    kernels = settle_kernels(whole, stores)
    if whole.features.massive.active:
        _settle_massive(whole, parts, announce, kernels)
    for part in unserved:
        record_kernels(part.request, kernels)
        part.open(process)
    beat = heartbeat_path()
    if beat is not None:
        n_done = sum(len(part.request.manifest.shards[index::count]) - len(part.pending) for part in parts)
        note_start(beat.with_suffix(f".{whole.manifest.folder[:12]}.json"), n_done)
    if any(part.pending for part in unserved):
        if data.num_workers > 1:
            announce(
                f"data.num_workers={data.num_workers}, of which extraction uses one: rows are written in shard order"
            )
        _check_space(unserved, announce)
        if backbone.cpu_kernels != "mkl":
            announce(str(kernels))
        # read again: another process may have begun these stores since
        settled = settle_kernels(whole, stores)
        if not whole.is_loaded or settled.used != kernels.used:
            announce("loading the backbone")
            whole.load_extractor(images=any(part.to_encode for part in unserved if part.pending), kernels=settled)
        _extract(whole, [part for part in unserved if part.pending], progress, announce)
    for part in unserved:
        part.writer.finish()
    return parts[0].path


def require_process(process: tuple[int, int]) -> tuple[int, int]:
    """Return number and count of a process. Raises: ConfigError for one that does not exist."""
    index, count = process
    if not 0 <= index < count:
        raise ConfigError(f"process {index}/{count} does not exist.", f"allowed: 0/{count} to {count - 1}/{count}")
    return process


class _Part:
    """One store of an extraction: that of the images, or that of one view of the training images.

    Attributes:
        request: what it holds.
        path: its folder.
        pending: the shards that this process still has to write.
    """

    latents: LatentCache | None = None
    writer: StoreWriter

    def __init__(self, request: Request) -> None:
        self.request, self.pending = request, list[ShardEntry]()
        self.path = Path(request.features.store) / request.manifest.folder

    def serve(self) -> bool:
        """Return whether a complete store covers the request; `path` is then its folder."""
        served = _served(self.request)
        if served is not None:
            self.path = served
            remove_leftovers(served)  # of a process that was killed after its last shard
        return served is not None

    def open(self, process: tuple[int, int]) -> None:
        """Open the writer, and the latent cache if there is one."""
        features = self.request.features
        self.latents = None if features.latent_cache is None else LatentCache(self.request)
        self.writer = StoreWriter(Path(features.store), self.request.manifest)
        self.pending = self.writer.pending(process)

    @property
    def to_encode(self) -> bool:
        """Whether images are encoded, rather than latents read."""
        return self.latents is None or bool(self.latents.missing(self.pending))


def _views_note(parts: Sequence[_Part]) -> str:
    return "" if len(parts) == 1 else f", and {len(parts) - 1} stores of views"


def _check_space(parts: Sequence[_Part], announce: Announce) -> None:
    """Compare the missing part of all stores with the free space: other processes write to the same disk."""
    needs: list[Need] = []
    of_latents: list[Need] = []
    for part in parts:
        missing = part.writer.pending()
        needs.append(features_need(part.path, part.request.plan, missing))
        if part.latents is not None:
            encode = part.latents.missing(missing)
            of_latents.append(latents_need(part.latents.path, part.request.plan, encode))
            announce(
                f"latents: {len(missing) - len(encode)} of {len(missing)} shards reused, {len(encode)} to encode: "
                f"{part.latents.path}"
            )
    free = check_space([*needs, *of_latents])
    n, n_all = sum(shard.n for part in parts for shard in part.pending), sum(need.n_samples for need in needs)
    own = "" if n == n_all else f", {n:,} images of them by this process"
    stores = "" if len(parts) == 1 else f" and {len(parts) - 1} more stores"
    announce(
        f"to write: {n_all:,} images x {len(parts[0].request.manifest.cells)} cells{own}, "
        f"about {size(sum(need.n_bytes for need in [*needs, *of_latents]))} ({size(free)} free): "
        f"{parts[0].path}{stores}"
    )


def _settle_massive(whole: Request, parts: Sequence[_Part], announce: Announce, kernels: KernelChoice) -> None:
    """Take the massive channels from a store that is there or begun, or else find them; all parts list the same."""
    begun = [part.path / MANIFEST for part in parts if (part.path / MANIFEST).is_file()]
    if begun:
        recorded = Manifest.read(begun[0]).recorded
        found = from_recorded(recorded, whole.plan.widths)
        whole.massive = (found, list(map(str, recorded[MASSIVE]["keys"])))
    elif whole.massive is None:
        n, split = whole.features.massive.images, whole.data.train_split
        announce(f"loading the backbone, to find massive channels on {n} images of '{split}'")
        whole.load_extractor(images=True, kernels=kernels)
    assert whole.massive is not None
    for line in notes(whole.massive[0], whole.features.massive):
        announce(line)
    for part in parts:
        part.request.massive = whole.massive


def _extract(whole: Request, parts: Sequence[_Part], progress: bool | MakeBar, announce: Announce) -> None:
    n, started = sum(shard.n for part in parts for shard in part.pending), time.monotonic()
    with ProgressDisplay(shown=progress is True) as display, _main_bar(n, progress, display) as bar:
        for part in parts:
            part.request.share_extractor(whole)
            for shard in part.pending:
                if part.latents is not None and part.latents.missing([shard]):
                    _encode(part.request, part.latents, shard, display)
                batches, left_out = _shard_features(part.request, part.latents, shard)
                part.writer.write(shard, _counted(batches, bar), left_out=left_out)
                bar.update(len(left_out))
    written = sum(folder_bytes(part.writer.path / shard_folder(shard.file)) for part in parts for shard in part.pending)
    announce(f"{rate(n, time.monotonic() - started)}, {size(written)} written: {parts[0].path}")


def _main_bar(n: int, progress: bool | MakeBar, display: ProgressDisplay) -> AbstractContextManager[Bar]:
    """Return the bar of an extraction, which counts the images that this process still has to extract."""
    return progress(n) if callable(progress) else display.bar(n, "extract", unit="images")


def _encode(request: Request, latents: LatentCache, shard: ShardEntry, display: ProgressDisplay) -> None:
    loader = shard_loader(request, shard)
    with display.bar(shard.n, "encode", unit="images", keep=False) as bar:
        latents.fill(shard, _counted(_checked(request, shard, loader), bar), loader.skipped, request.extractor)


def rate(n: int, seconds: float) -> str:
    """Format a number of images and the time they took.

    >>> rate(1500, 60)
    '1,500 images in 60.0 s (25.0 images/s)'
    """
    return f"{n:,} images in {seconds:,.1f} s ({n / max(seconds, 1e-9):,.1f} images/s)"


def _shard_features(
    request: Request, latents: LatentCache | None, shard: ShardEntry
) -> tuple[Iterator[ExtractedBatch], Mapping[str, str]]:
    """Return the features of a shard, and its skipped samples, which are known after the last batch."""
    if latents is None:
        loader = shard_loader(request, shard)
        return _checked(request, shard, shard_batches(request, loader)), loader.skipped
    items = latents.batches(shard, request.data.batch_size)
    return (_from_latents(request, item) for item in items), latents.left_out(shard)


def shard_loader(request: Request, shard: ShardEntry, *, shard_set: ShardSet | None = None) -> ImageLoader:
    """Make the loader of one source shard, in shard order; of the request's view of the shards if that is given.

    At most one worker decodes images: two would interleave their batches, and a store's rows are in shard order.
    """
    stream = SampleStream(
        shard_set or request.shard_set,
        shard.split,
        resolution=request.plan.resolution,
        fields=request.fields,
        on_error=request.data.on_error,
        limit=request.data.limit,
        shard_subset=[shard.file],
        caps=request.data.caps,
        require=request.required,
        verify=request.data.verify,
        views=None if request.image_view is None else request.batch_views,
    )
    return make_loader(stream, request.data.batch_size, min(request.data.num_workers, 1))


def shard_batches(request: Request, loader: ImageLoader) -> Iterator[ExtractedBatch]:
    """Yield the features of a shard's samples in shard order, on the backbone's device."""
    for images in loader:
        yield ExtractedBatch(to_features(request, images), images.captions)


def to_features(request: Request, images: ImageBatch) -> FeatureBatch:
    """Run the backbone on a batch of images."""
    features = request.extractor(images.images, **request_texts(request, images, images.captions, view=images.view))
    return FeatureBatch(
        features=features, keys=images.keys, label=images.label, attributes=images.attributes, captions=images.captions
    )


def _from_latents(request: Request, item: ExtractedBatch) -> ExtractedBatch:
    batch = item.batch
    texts = request_texts(request, batch, item.captions, view=request.image_view)
    features = request.extractor.from_latents(batch.features[CELL], **texts)
    return ExtractedBatch(FeatureBatch(features, batch.keys, batch.label, batch.attributes), item.captions)


def _served(request: Request) -> Path | None:
    try:
        store = FeatureStore.find(request.features.store, request.manifest)
    except (StoreIncomplete, StoreMismatch):
        return None
    return store.path


def _checked(request: Request, shard: ShardEntry, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of a shard, then verify the shard's checksum, before the store records it.

    Raises: ShardError.
    """
    yield from batches
    request.shard_set.check(shard.file)


def _counted(batches: Iterable[Batch], bar: Bar) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.update(len(batch))
