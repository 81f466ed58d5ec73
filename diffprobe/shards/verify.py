"""Verify a shard set: compare it with its index and decode every image (`diffprobe data verify`)."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffprobe.core.errors import SampleError, ShardError
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.decode import Sample, decode_sample
from diffprobe.shards.index import ShardInfo, ShardSet

_SHOWN = 10
"""Most duplicates that are listed."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of `verify`.

    Attributes:
        n_good: number of valid samples.
        faults: one message per fault, with shard and key.
        n_duplicates: number of valid samples whose pixels are also those of a sample of another split, read before.
        duplicates: a line for the first of them, with both splits and keys.
    """

    n_good: int
    faults: tuple[str, ...]
    n_duplicates: int = 0
    duplicates: tuple[str, ...] = ()


class _Pixels:
    """The pixels of all samples, as digests, to find those that two splits share."""

    def __init__(self) -> None:
        self.n, self.lines = 0, list[str]()
        self._first: dict[bytes, dict[str, str]] = {}

    def add(self, sample: Sample, split: str) -> None:
        """Compare a sample with those of other splits."""
        size = f"{sample.image.width} {sample.image.height} ".encode()
        digest = hashlib.sha256(size + sample.image.tobytes()).digest()[:16]
        first = self._first.setdefault(digest, {split: sample.key})
        others = [(name, key) for name, key in first.items() if name != split]
        if others:
            self.n += 1
            if len(self.lines) < _SHOWN:
                self.lines.append(f"{split} '{sample.key}' has the pixels of {others[0][0]} '{others[0][1]}'")
        first.setdefault(split, sample.key)


def verify(
    shard_set: ShardSet,
    *,
    fields: Fields | None = None,
    on_shard: Callable[[str], None] = lambda file: None,
    caps: Caps | None = None,
) -> Verification:
    """Read every byte of a shard set: checksums, counts, unique keys, annotations, images to their end.

    All faults of the set are collected; none is raised. Images of different splits with equal pixels are listed apart
    from the faults: published sets have some.

    Args:
        shard_set: the set, from `ShardSet.load`.
        fields: names of the files and keys of a sample (see `ShardSet.fields_for`).
        on_shard: called with each file name before the shard is read.
        caps: largest parts of a sample that are read.

    Raises: ConfigError for other fields than those of the index.
    """
    names = shard_set.fields_for(fields)
    faults: list[str] = []
    keys: dict[str, str] = {}
    pixels = _Pixels()
    n_good = 0
    for shard in shard_set.shards:
        on_shard(shard.file)
        try:
            shard_set.check(shard.file)
        except ShardError as error:
            faults.append(error.what)
        try:
            for fault in _samples(shard_set, shard, names, keys, caps, pixels):
                n_good += fault is None
                faults += [] if fault is None else [fault]
        except ShardError as error:
            faults.append(error.what)
    return Verification(n_good=n_good, faults=tuple(faults), n_duplicates=pixels.n, duplicates=tuple(pixels.lines))


def _samples(
    shard_set: ShardSet,
    shard: ShardInfo,
    fields: Fields,
    keys: dict[str, str],
    caps: Caps | None,
    pixels: _Pixels,
) -> Iterator[str | None]:
    """Yield None for each valid sample of a shard, and a message for each fault."""
    count = 0
    for raw in shard_set.read(shard.file, caps=caps):
        count += 1
        if raw.key in keys:
            yield f"{raw.shard}: key '{raw.key}' also occurs in {keys[raw.key]}."
            continue
        keys[raw.key] = raw.shard
        try:
            sample = decode_sample(raw, shard_set, fields=fields, caps=caps)
        except SampleError as error:
            yield error.what
        else:
            pixels.add(sample, shard.split)
            yield None
    if count != shard.n_samples:
        yield f"{shard.file}: the shard has {count} samples, the index {shard.n_samples}."
