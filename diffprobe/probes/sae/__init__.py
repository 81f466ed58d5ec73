"""Sparse autoencoders: one file a variant over base.py; the file's name is `probe.name`.

`KSAE.from_pretrained(folder)` reads any of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffprobe.probes.sae.base import KSAE

__all__ = ["KSAE"]

SHARED = ("base", "convert", "hub", "initialization", "kernels", "types")
"""Files of this folder that are no variants: what the variants share."""


def __getattr__(name: str) -> Any:  # torch is loaded when an autoencoder is asked for, not when variants are listed
    if name == "KSAE":
        from diffprobe.probes.sae.base import KSAE

        return KSAE
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
