"""diffprobe: read what a frozen diffusion model knows.

The public names are imported when first used, so that ``import diffprobe`` and ``diffprobe --help`` stay fast:

- ``DiffusionFeatures``: images in, features of named taps and timesteps out (`diffprobe.backbones.extractor`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {"DiffusionFeatures": "diffprobe.backbones.extractor"}

__all__ = ["DiffusionFeatures", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'diffprobe' has no attribute {name!r}")
