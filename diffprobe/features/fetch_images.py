"""Fetch the images of samples by their keys, from the shards that contain them."""

from collections.abc import Iterable, Mapping

from PIL import Image

from diffprobe.core.errors import SampleError
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.decode import decode_image
from diffprobe.shards.index import ShardSet


def fetch_images(
    shard_set: ShardSet,
    keys: Iterable[str],
    *,
    shards: Mapping[str, str] | None = None,
    fields: Fields | None = None,
    caps: Caps | None = None,
) -> dict[str, Image.Image]:
    """Return the images of some samples as RGB in their original size, in the order of `keys`.

    Args:
        shards: key -> shard file, for example `dict(zip(table.keys, table.shards))`; only these files are opened. If
            None, shards are read in order until every key is found.
        fields: names of the files of a sample (see `ShardSet.fields_for`).
        caps: largest parts of a sample that are read.

    Raises: ShardError for a shard that has changed since it was indexed; SampleError for keys that are not in the set
        or an image that cannot be decoded; ConfigError for other fields than those of the index.
    """
    names = shard_set.fields_for(fields)
    wanted = list(dict.fromkeys(keys))
    left = set(wanted)
    found: dict[str, Image.Image] = {}
    places = None if shards is None else {shards[key] for key in wanted if key in shards}
    for shard in shard_set.shards:
        if not left or (places is not None and shard.file not in places):
            continue
        shard_set.check(shard.file)
        for raw in shard_set.read(shard.file, caps=caps):
            if raw.key in left:
                found[raw.key] = decode_image(raw, names, caps=caps)
                left.discard(raw.key)
                if not left:
                    break
    if left:
        missing = [key for key in wanted if key in left]
        some = ", ".join(f"'{key}'" for key in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise SampleError(f"{len(missing)} of {len(wanted)} samples are not in '{shard_set.name}': {some}.")
    return {key: found[key] for key in wanted}
