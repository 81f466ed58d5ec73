"""Verify a shard set: compare it with its index and decode every image (`diffprobe data verify`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffprobe.core.errors import SampleError, ShardError
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardInfo, ShardSet


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of `verify`: the number of valid samples, and one message per fault, with shard and key."""

    n_good: int
    faults: tuple[str, ...]


def verify(
    shard_set: ShardSet,
    *,
    fields: Fields | None = None,
    on_shard: Callable[[str], None] = lambda file: None,
    caps: Caps | None = None,
) -> Verification:
    """Read every byte of a shard set: checksums, counts, unique keys, annotations, images to their end.

    All faults of the set are collected; none is raised.

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
    n_good = 0
    for shard in shard_set.shards:
        on_shard(shard.file)
        try:
            shard_set.check(shard.file)
        except ShardError as error:
            faults.append(error.what)
        try:
            for fault in _samples(shard_set, shard, names, keys, caps):
                n_good += fault is None
                faults += [] if fault is None else [fault]
        except ShardError as error:
            faults.append(error.what)
    return Verification(n_good=n_good, faults=tuple(faults))


def _samples(
    shard_set: ShardSet, shard: ShardInfo, fields: Fields, keys: dict[str, str], caps: Caps | None
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
            decode_sample(raw, shard_set, fields=fields, caps=caps)
        except SampleError as error:
            yield error.what
        else:
            yield None
    if count != shard.n_samples:
        yield f"{shard.file}: the shard has {count} samples, the index {shard.n_samples}."
