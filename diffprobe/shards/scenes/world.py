"""Open the world that ships with diffprobe, or another file of the same format."""

from functools import lru_cache
from pathlib import Path

from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.spec_file import read_spec
from diffprobe.shards.scenes.sprites import check_visible

SHIPPED = Path(__file__).with_name("world.yaml")
"""The file of the shipped world."""


@lru_cache(maxsize=8)
def load_world(path: Path = SHIPPED) -> WorldSpec:
    """Read and check the file of a world.

    Raises: ConfigError for a file that is wrong (see `spec_file.read_spec`), and for parts that hide one another or
        leave the image (see `sprites.check_visible`).
    """
    spec = read_spec(path)
    check_visible(spec)
    return spec
