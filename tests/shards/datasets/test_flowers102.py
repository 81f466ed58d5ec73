"""Flowers-102: the authors' lists, exchanged on request."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.datasets.flowers102 import NAMES, build, tiny


def test_lists_and_exchanged_lists(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    built = build(**arguments, out=tmp_path / "a")  # type: ignore[arg-type]
    assert len(set(NAMES)) == 102 and [built.n_samples(split) for split in ("train", "val", "test")] == [2, 2, 5]
    swapped = build(**{**arguments, "swap": True, "name": None}, out=tmp_path / "b")  # type: ignore[arg-type]
    assert swapped.name == "flowers102-swapped" and swapped.n_samples("train") == 5
    with pytest.raises(ShardError, match="has no list 'trnid'(?s:.*)expected: setid.mat"):
        build(**{**arguments, "splits": arguments["labels"]}, out=tmp_path / "c")  # type: ignore[arg-type]
