"""Oxford-IIIT Pet: breeds, species and masks from the lists; other archives are refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.shards.datasets.oxford_pets import build, tiny, to_mask
from diffprobe.shards.reader import read_shard


def test_breeds_species_and_masks(tmp_path: Path) -> None:
    built = build(**tiny(tmp_path)[0], out=tmp_path / "out")  # type: ignore[arg-type]
    assert built.classes == ("Abyssinian", "great pyrenees")
    assert {split: built.n_samples(split) for split in built.splits()} == {"train": 6, "val": 2, "test": 4}
    for shard in built.shards:
        for raw in read_shard(built.root / shard.file):
            record = json.loads(raw.files["json"])
            assert record["attributes"]["species"] == ("cat" if raw.key.startswith("Abyssinian") else "dog")
            with Image.open(io.BytesIO(raw.files["mask.png"])) as mask:
                assert np.asarray(mask).ravel().tolist() == [1, 0, 2] * 32 and mask.size == (12, 8)
    with pytest.raises(OSError):
        to_mask(b"no image")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    swapped = {**arguments, "annotations": arguments["images"], "images": arguments["annotations"]}
    with pytest.raises(ShardError, match="lacks 2 files(?s:.*)trainval.txt(?s:.*)expected: annotations.tar.gz"):
        build(**swapped, out=tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="train: 8 images, expected 3,680(?s:.*)2 classes, expected 37"):
        build(**{**arguments, "subset": False}, out=tmp_path / "b")  # type: ignore[arg-type]
