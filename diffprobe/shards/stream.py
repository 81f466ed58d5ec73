"""Stream shards: the decoded samples of a split for one rank, in an order fixed by (seed, epoch).

Handles order, repetition and faulty samples; partition.py assigns samples to ranks and workers. Rank, world size and
epoch are arguments, since a loader worker may not have its parent's environment.
"""

import logging
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diffprobe.core.errors import ConfigError, DiffprobeError, SampleError, ShardError, unknown
from diffprobe.core.rng import derive_seed
from diffprobe.core.signals import shield_worker
from diffprobe.shards.annotation import Annotation, Caps, Fields, parse_annotation
from diffprobe.shards.batch import ImageBatch, collate
from diffprobe.shards.decode import Sample, decode_sample
from diffprobe.shards.holdout import ShardPart
from diffprobe.shards.index import ShardSet
from diffprobe.shards.partition import ShardSlice, cut, limit_pieces, span_of_rank, span_of_worker
from diffprobe.shards.reader import RawSample
from diffprobe.shards.views import BatchViews

_log = logging.getLogger(__name__)


class SampleStream(IterableDataset[Sample]):
    """The samples of one split for one rank.

    Without `equal` (evaluation, extraction) all ranks and workers together yield each sample exactly once. With `equal`
    (training under DDP) every rank yields ceil(n / world_size) samples: the last ranks continue at the beginning of the
    epoch's order, so fewer than `world_size` samples are repeated, the same ones in every run.

    Args:
        shard_set: the set, from `ShardSet.load`.
        split: name of a split.
        resolution: height and width of the images in pixels (see `core.image.fit`); None keeps their size.
        fields: names of the files and keys of a sample (see `ShardSet.fields_for`).
        rank: rank of this process, from 0.
        world_size: number of processes.
        shuffle_buffer: 0 keeps the order of the shards; otherwise shards are shuffled, and samples in a buffer of this
            size.
        seed: seed of the order.
        epoch: the order differs between epochs; see `set_epoch`.
        on_error: "raise" stops at a faulty sample; "skip" skips it and lists it in `skipped`. A fault of a whole shard
            (truncated, duplicate key, different from the index) always raises.
        limit: read only the first `limit` samples of the split in shard order, faulty ones included.
        shard_subset: file names of the shards to read, after `limit`; None for all.
        equal: yield the same number of samples on every rank.
        caps: largest parts of a sample that are read.
        require: columns (caption, label, class_name, attributes) without which a sample is skipped, as if it were
            faulty.
        verify: compare the checksums of the shards with the index, once per process; False checks only the shards that
            are newer than the index.
        views: what makes a random view of each image; None for the images themselves.

    Attributes:
        skipped: key -> message of the samples skipped so far in this process. Those of loader workers are in
            `ImageLoader.skipped`.

    Raises: UnknownName for an unknown split or shard, ConfigError for an invalid argument, ShardError for a shard that
        was modified after it was indexed; when iterated, SampleError and ShardError with shard and key.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        split: str,
        *,
        resolution: int | None = None,
        fields: Fields | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 0,
        seed: int = 0,
        epoch: int = 0,
        on_error: str = "raise",
        limit: int | None = None,
        shard_subset: Sequence[str] | None = None,
        equal: bool = False,
        caps: Caps | None = None,
        require: Sequence[str] = (),
        verify: bool = True,
        views: BatchViews | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise unknown("on_error", on_error, ("raise", "skip"), ConfigError)
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"rank={rank} is out of range for world_size={world_size}.", f"allowed: 0 to {world_size - 1}"
            )
        if (resolution is not None and resolution < 1) or shuffle_buffer < 0:
            raise ConfigError(f"resolution={resolution}, shuffle_buffer={shuffle_buffer}: too small.")
        self.shard_set, self.split, self.resolution = shard_set, split, resolution
        self.fields = shard_set.fields_for(fields)
        self.rank, self.world_size, self.equal = rank, world_size, equal
        self.shuffle_buffer, self.seed, self.epoch, self.on_error = shuffle_buffer, seed, epoch, on_error
        self.caps, self.require, self.views = caps or Caps(), tuple(require), views
        self.skipped: dict[str, str] = {}
        shards = shard_set.shards_of(split)
        self._counts = {shard.file: shard.n_samples for shard in shards}
        self._members = {shard.file: shard.members for shard in shards if isinstance(shard, ShardPart)}
        self._pieces = limit_pieces([ShardSlice(shard.file, 0, shard.n_samples) for shard in shards], limit)
        if shard_subset is not None:
            for file in shard_subset:
                if file not in self._counts:
                    raise unknown(f"shard of split '{split}'", file, self._counts)
            chosen = set(shard_subset)
            self._pieces = [piece for piece in self._pieces if piece.file in chosen]
        if shard_subset is None:
            require_empty_shards(shard_set, split, self.caps)
        checked = {piece.file for piece in self._pieces if len(piece)}
        for file in sorted(checked if verify else checked & set(shard_set.newer)):
            shard_set.check(file)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for the next iteration; call it in the main process before the loader is iterated."""
        self.epoch = epoch

    @property
    def span(self) -> tuple[int, int]:
        """The samples of this rank, as positions in the sequence of all samples, which repeats past its end."""
        return span_of_rank(sum(map(len, self._pieces)), self.rank, self.world_size, equal=self.equal)

    @property
    def n_samples(self) -> int:
        """Number of samples of this rank per epoch, faulty ones included."""
        return self.span[1] - self.span[0]

    def __iter__(self) -> Iterator[Sample]:
        return self.iterate(batch_size=1)

    def iterate(self, batch_size: int) -> Iterator[Sample]:
        """Yield the samples of this worker, in whole batches of `batch_size`."""
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        start, stop = span_of_worker(self.span, worker, n_workers, batch_size)
        pieces = cut(self._ordered(), start, stop)
        n_given = round_ = 0
        while n_given < stop - start:
            before = n_given
            generator = random.Random(derive_seed("samples", self.seed, self.epoch, self.rank, worker, round_))
            for sample in self._decoded(_shuffled(self._raw(pieces), self.shuffle_buffer, generator)):
                yield sample
                n_given += 1
                if (
                    n_given == stop - start and round_
                ):  # the first round continues to the end of the last shard, to verify it
                    return
            if not self.equal:
                return  # skipped samples shorten an evaluation; equal streams repeat valid samples instead
            if n_given == before:
                raise ShardError(
                    f"rank {self.rank} of split '{self.split}' has no valid sample.", *self.skipped.values()
                )
            round_ += 1

    def batch(self, samples: Sequence[Sample]) -> ImageBatch:
        """Return samples as a batch, as the view of the epoch where views are read. Raises: see `collate`."""
        plain = collate(samples, self.shard_set)
        return plain if self.views is None else self.views(plain, self.epoch)

    def annotations(self) -> Iterator[tuple[str, Annotation]]:
        """Yield key and annotation of all samples of the split in shard order; no image is decoded.

        Raises: SampleError for an annotation that cannot be read.
        """
        for raw in self._raw(self._pieces):
            yield raw.key, parse_annotation(raw, self.fields, renamed=self.shard_set.renamed, caps=self.caps)

    def _ordered(self) -> list[ShardSlice]:
        """Return the shards in this epoch's order, which is equal on all ranks."""
        pieces = list(self._pieces)
        if self.shuffle_buffer:
            random.Random(derive_seed("shards", self.seed, self.epoch)).shuffle(pieces)
        return pieces

    def _raw(self, pieces: list[ShardSlice]) -> Iterator[RawSample]:
        for piece in pieces:
            members = self._members.get(piece.file)
            total = self._counts[piece.file] if members is None else len(members)
            count = place = 0  # samples of the shard so far, and those of them that belong to the split
            for raw in self.shard_set.read(piece.file, caps=self.caps):
                count += 1
                if members is None or (count <= total and members[count - 1]):
                    if piece.start <= place < piece.stop:
                        yield raw
                    place += 1
                if place == piece.stop < self._counts[piece.file]:
                    break
            if place < piece.stop or count > total:
                raise _other_count(self.shard_set, piece.file, str(count), total)

    def _decoded(self, raws: Iterator[RawSample]) -> Iterator[Sample]:
        for raw in raws:
            try:
                sample = decode_sample(
                    raw, self.shard_set, fields=self.fields, resolution=self.resolution, caps=self.caps
                )
            except SampleError as error:
                if self.on_error == "raise":
                    raise
                self.skipped[raw.key] = error.what
                continue
            lacking = [name for name in self.require if not sample.has(name)]
            if lacking:
                self.skipped[raw.key] = f"{sample.shard}, sample '{raw.key}': no {lacking[0]}."
            else:
                yield sample


def require_empty_shards(shard_set: ShardSet, split: str, caps: Caps) -> None:
    """Check that the shards of a split that are never read, empty ones by the index, are empty. Raises: ShardError."""
    for shard in shard_set.shards_of(split):
        left_out = isinstance(shard, ShardPart) and len(shard.members)  # it has samples, of the other split
        if not shard.n_samples and not left_out and next(shard_set.read(shard.file, caps=caps), None) is not None:
            raise _other_count(shard_set, shard.file, "some", 0)


def _other_count(shard_set: ShardSet, file: str, found: str, listed: int) -> ShardError:
    return ShardError(
        f"{file}: the shard has {found} samples, the index {listed}.", fix=f"diffprobe data verify {shard_set.root}"
    )


class ImageLoader(DataLoader[Any]):
    """The batches of a SampleStream; created by `make_loader`.

    Attributes:
        stream: the stream.
        skipped: key -> message of the samples skipped in the last iteration, from all workers.
    """

    def __init__(self, stream: SampleStream, batch_size: int, **options: Any) -> None:
        super().__init__(_Batches(stream, batch_size), batch_size=None, **options)
        self.stream = stream
        self.skipped: dict[str, str] = {}
        # Lightning calls set_epoch of a loader's sampler, also after a restart; here the stream has the order.
        self.sampler.set_epoch = self.set_epoch  # type: ignore[attr-defined]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for the next iteration; Lightning's loops call it."""
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]
        self.skipped.clear()
        for item, skipped in super().__iter__():
            for key, message in skipped.items():
                _log.warning("left out: %s", message)
                self.skipped[key] = message
            if isinstance(item, DiffprobeError):  # raised here, since a worker's traceback would hide its message
                raise item
            if item is not None:
                yield item


def make_loader(
    stream: SampleStream,
    batch_size: int,
    num_workers: int = 0,
    *,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> ImageLoader:
    """Return the loader of a stream; `len(loader)` is its number of batches, of which only the last may be short.

    An equal stream yields `partition.steps_per_epoch` batches on every rank, for any number of workers.

    Args:
        stream: the stream; workers read disjoint parts of it.
        batch_size: samples per batch on this rank.
        num_workers: loader processes; 0 reads in this process.
        pin_memory: put batches into page-locked memory.
        multiprocessing_context: "fork", "spawn" or "forkserver"; None for the platform's own.
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(f"batch_size={batch_size} must be at least 1, num_workers={num_workers} at least 0.")
    context = multiprocessing_context if num_workers else None
    return ImageLoader(
        stream,
        batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        worker_init_fn=shield_worker,
    )


Item = tuple[ImageBatch | DiffprobeError | None, dict[str, str]]


class _Batches(IterableDataset[Item]):
    """Batches, each with the samples skipped since the one before."""

    def __init__(self, stream: SampleStream, batch_size: int) -> None:
        self.stream, self.batch_size = stream, batch_size

    def __len__(self) -> int:
        return math.ceil(self.stream.n_samples / self.batch_size)

    def __iter__(self) -> Iterator[Item]:
        samples: list[Sample] = []
        reported: set[str] = set()

        def news() -> dict[str, str]:
            fresh = {key: text for key, text in self.stream.skipped.items() if key not in reported}
            reported.update(fresh)
            return fresh

        self.stream.skipped.clear()
        try:
            for sample in self.stream.iterate(self.batch_size):
                samples.append(sample)
                if len(samples) == self.batch_size:
                    yield self.stream.batch(samples), news()
                    samples = []
            if samples:
                yield self.stream.batch(samples), news()
        except DiffprobeError as error:
            yield error, news()
            return
        if rest := news():
            yield None, rest


def _shuffled(raws: Iterator[RawSample], size: int, generator: random.Random) -> Iterator[RawSample]:
    """Shuffle undecoded samples in a buffer of `size`."""
    if size < 2:
        yield from raws
        return
    buffer: list[RawSample] = []
    for raw in raws:
        if len(buffer) < size:
            buffer.append(raw)
            continue
        place = generator.randrange(size)
        raw, buffer[place] = buffer[place], raw
        yield raw
    generator.shuffle(buffer)
    yield from buffer
