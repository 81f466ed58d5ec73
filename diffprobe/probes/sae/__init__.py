"""Sparse autoencoders: one file per variant over `base.py`; the name of the file is `probe.name`.

`KSAE.from_pretrained(folder)` loads any of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffprobe.probes.sae.base import KSAE

__all__ = ["KSAE"]

SHARED = ("base", "convert", "hub", "initialization", "kernels", "latent_shards", "open_folder", "sharded", "types")
"""Files of this folder that are not variants: code that the variants share."""


def __getattr__(name: str) -> Any:  # listing the variants does not import torch
    if name == "KSAE":
        from diffprobe.probes.sae.base import KSAE

        return KSAE
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
