"""The folder for what can be made again: converted checkpoints, the index of runs. Standard library only."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache folder: $DIFFPROBE_CACHE, else $XDG_CACHE_HOME/diffprobe, else ~/.cache/diffprobe."""
    own, shared = os.environ.get("DIFFPROBE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "diffprobe"
