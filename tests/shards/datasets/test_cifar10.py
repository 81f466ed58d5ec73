"""CIFAR-10: labels and names of the binary version; the Python version is refused."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.datasets.cifar10 import build, tiny
from diffprobe.shards.tiny_archive import write_tar


def test_names_and_another_version(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    assert build(**arguments, out=tmp_path / "a").classes == ("airplane", "automobile")  # type: ignore[arg-type]
    pickled = write_tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"})
    with pytest.raises(ShardError, match="lacks 7 files(?s:.*)expected: cifar-10-binary.tar.gz"):
        build(images=pickled, out=tmp_path / "b")
