"""The shipped world, and its file as a tree that a test may change."""

from typing import Any

import pytest
import yaml

from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import SHIPPED, load_world


@pytest.fixture(scope="session")
def spec() -> WorldSpec:
    return load_world()


@pytest.fixture
def tree() -> dict[str, Any]:
    return yaml.safe_load(SHIPPED.read_text("utf-8"))
