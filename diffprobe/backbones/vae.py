"""The encoder half of a KL autoencoder. Owns the way from images to scaled latents; the decoder stays on disk."""

import json
from pathlib import Path
from typing import Any

import torch

from diffprobe.backbones.capture import Absent
from diffprobe.backbones.weights import load_tensors
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap, Images

_PIXELS = 2**20
"""Pixels a pass: bounds the memory of the first convolutions at any batch size."""


class VaeEncoder:
    """Frozen encoder of an AutoencoderKL.

    Args:
        vae: the autoencoder; only `encode` is used.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @torch.no_grad()
    def __call__(self, images: Images) -> FeatureMap:
        """Encode images in [0, 1] to (mode - shift) x scale, float32. The mode, not a sample: noise comes later."""
        config: Any = self.vae.config
        dtype = next(self.vae.parameters()).dtype
        rows = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
        parts = [self.vae.encode((chunk * 2 - 1).to(dtype)).latent_dist.mode().float() for chunk in images.split(rows)]
        return (torch.cat(parts) - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def latent_geometry(folder: Path) -> tuple[int, int]:
    """Return the number of latent channels and the factor by which the VAE shrinks a side, from the config alone."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") != "AutoencoderKL":
        raise WeightsMismatch(
            f"the VAE in '{folder}' is a {config.get('_class_name')}; this family takes AutoencoderKL."
        )
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise WeightsMismatch(f"the VAE in '{folder}' normalises latents by channel, which this family does not do.")
    return config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)


def load_vae_encoder(folder: Path, *, dtype: torch.dtype) -> VaeEncoder:
    """Load the encoder of an AutoencoderKL.

    In float16 the encoder stays in float32 where the config says that it overflows (`force_upcast`).
    Raises: WeightsMissing, WeightsMismatch.
    """
    from diffusers import AutoencoderKL

    config = AutoencoderKL.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        vae: Any = AutoencoderKL.from_config(config)
    expected = frozenset(vae.state_dict())
    vae.decoder, vae.post_quant_conv = Absent(), Absent()
    if dtype == torch.float16 and vae.config.force_upcast:
        dtype = torch.float32
    load_tensors(vae, folder, dtype=dtype, expected=expected)
    return VaeEncoder(vae.eval().requires_grad_(False))
