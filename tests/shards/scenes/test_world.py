"""Worlds are checked when they are opened."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.world import SHIPPED, load_world


def test_a_world_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "world.yaml"
    text = SHIPPED.read_text("utf-8")
    path.write_text(text)
    assert load_world(path).digest == load_world().digest
    other = tmp_path / "hidden.yaml"
    other.write_text(text.replace("object_distance: 19", "object_distance: 6"))
    with pytest.raises(ConfigError, match="'object'"):
        load_world(other)
    with pytest.raises(ConfigError, match="missing.yaml"):
        load_world(tmp_path / "missing.yaml")
