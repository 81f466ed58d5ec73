"""The undecoded samples of a split, for truth that is read beside the image."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffprobe.shards.annotation import Caps
from diffprobe.shards.holdout import ShardPart

if TYPE_CHECKING:
    from diffprobe.shards.index import ShardSet
    from diffprobe.shards.reader import RawSample


def read_raw_samples(
    shard_set: "ShardSet", split: str, *, limit: int | None = None, caps: Caps | None = None
) -> "Iterator[RawSample]":
    """Yield the samples of a split in shard order, without those that its view leaves out.

    Args:
        shard_set: the set, or its view with a validation split.
        limit: number of samples, the first ones; None for all.

    Raises: UnknownName for a split that the set does not have; the errors of checking and reading a shard.
    """
    left = math.inf if limit is None else limit
    for shard in shard_set.shards_of(split):
        if left <= 0:
            return
        shard_set.check(shard.file)
        for raw in shard_set.read(shard.file, caps=caps):
            if isinstance(shard, ShardPart) and not shard.members[raw.position]:
                continue
            if left <= 0:
                return
            left -= 1
            yield raw
