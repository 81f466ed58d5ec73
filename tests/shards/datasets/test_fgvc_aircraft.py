"""FGVC-Aircraft: three levels of classes, and the banner cut off."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError
from diffprobe.shards.datasets.fgvc_aircraft import build, tiny, without_banner


def test_the_level_makes_the_class(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    assert build(**arguments, out=tmp_path / "a").classes == ("707-320", "F-16A/B")  # type: ignore[arg-type]
    maker = {**arguments, "level": "manufacturer", "name": None}
    built = build(**maker, out=tmp_path / "b")  # type: ignore[arg-type]
    assert built.classes == ("Boeing", "Lockheed") and built.attributes["variant"] == ("707-320", "F-16A/B")
    with pytest.raises(ConfigError, match="--level airline"):
        build(**{**arguments, "level": "airline"}, out=tmp_path / "c")  # type: ignore[arg-type]


def test_the_banner_is_cut_and_the_rest_is_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((48, 52), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    with Image.open(buffer) as before, Image.open(io.BytesIO(without_banner(buffer.getvalue()))) as after:
        assert after.size == (48, 32)
        difference = np.asarray(before, np.int64)[:32] - np.asarray(after, np.int64)
        assert abs(difference).mean() < 2  # of 255 levels: rounded and clipped twice, on the same grid of blocks
    with pytest.raises(ValueError, match="8 rows"):
        low = io.BytesIO()
        picture.resize((8, 8)).save(low, "JPEG")
        without_banner(low.getvalue())
