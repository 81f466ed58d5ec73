"""Reads the raw samples of one shard. Owns keys: what belongs to which sample, and that no key comes twice.

WebDataset opens the tar and groups its members. What the bytes mean is left to annotation.py and decode.py.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.errors import DuplicateKey, ShardError


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """The files of one sample as they stand in the tar.

    Attributes:
        key: identity of the sample, unique in the shard set.
        shard: file name of the shard.
        position: place in the shard, counted from 0 over all samples, faulty ones too.
        files: bytes by extension, lower case.
    """

    key: str
    shard: str
    position: int
    files: dict[str, bytes]


def read_shard(path: Path, *, strays: list[str] | None = None) -> Iterator[RawSample]:
    """Yield the samples of a shard in their order.

    Args:
        path: a `.tar` or `.tar.gz` file.
        strays: gets the names of members that belong to no sample (no extension), which WebDataset passes over.

    Raises: ShardError for a file that is missing, cut off or no tar; DuplicateKey for a key that comes twice.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

    members: set[str] = set()

    def split_name(name: str) -> tuple[str | None, str | None]:
        key, extension = base_plus_ext(name)
        if key is None:
            if strays is not None:
                strays.append(name)
        elif f"{key}.{extension.lower()}" in members:
            raise DuplicateKey(f"{path.name}: sample '{key}' has two files '.{extension.lower()}'.", fix=_DUPLICATE_FIX)
        else:
            members.add(f"{key}.{extension.lower()}")
        return key, extension

    last, position, keys = "(none)", 0, set()
    try:
        with open(path, "rb") as file:
            source = [{"url": path.name, "stream": file}]
            for group in group_by_keys(tar_file_expander(source), keys=split_name):
                key = group["__key__"]
                if key in keys:
                    raise DuplicateKey(f"{path.name}: key '{key}' comes back after other samples.", fix=_DUPLICATE_FIX)
                keys.add(key)
                files = {name: data for name, data in group.items() if not name.startswith("__")}
                yield RawSample(key=key, shard=path.name, position=position, files=files)
                last, position = key, position + 1
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ShardError(
            f"{path.name}: the shard can't be read to its end ({type(error).__name__}: {error.args[0]}).",
            f"samples read before: {position}, the last one: '{last}'",
            f"file: {path}",
            fix="copy or download the shard again; it may be cut off",
        ) from error


_DUPLICATE_FIX = "give every sample its own key and write all files of a sample one after the other"
