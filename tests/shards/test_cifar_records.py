"""Records of CIFAR: labels, pixels, and files that are no records."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.shards.cifar_records import PIXELS, check_label, class_names, records, tiny_records, to_png
from diffprobe.shards.source_archive import FilePart


def test_pixels_are_red_green_and_blue_planes(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(tiny_records(3, [(1, 7), (0, 5)]))
    found = list(records(FilePart(path=tmp_path / "x.bin"), "x.bin", 2))
    assert [labels for labels, _ in found] == [(1, 7), (0, 5), (1, 7)]
    pixels = found[1][1].read()
    image = np.asarray(Image.open(io.BytesIO(to_png(pixels))))
    assert [image[2, 3, c] for c in range(3)] == [pixels[1024 * c + 32 * 2 + 3] for c in range(3)]
    with pytest.raises(ShardError, match=f"not records of {PIXELS + 1:,}".replace(",", ",")):
        list(records(FilePart(path=tmp_path / "x.bin"), "x.bin", 1))


def test_names(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("maple_tree\nbaby\n\n")
    files = {"n.txt": FilePart(path=tmp_path / "n.txt")}
    assert class_names(files, "n.txt", tmp_path) == ["maple tree", "baby"]
    with pytest.raises(ShardError, match="label 2 is out of range; the set has 2 names"):
        check_label(2, ["a", "b"], "x")
