"""The encoder half of an autoencoder. Owns the way from images to scaled latents; the decoder stays on disk."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.capture import Absent
from diffprobe.backbones.weights import load_tensors
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
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
        """Encode images in [0, 1] to (mode - shift) x scale, float32. The mode, not a sample: noise comes later.

        Raises: WeightsMissing if it was loaded without images in view.
        """
        if isinstance(self.vae.encoder, Absent):
            raise WeightsMissing("the VAE was not loaded: this backbone reads kept latents only.")
        dtype = next(self.vae.parameters()).dtype
        rows = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
        return torch.cat([self._encode((chunk * 2 - 1).to(dtype)) for chunk in images.split(rows)])

    def _encode(self, x: Tensor) -> Tensor:
        config: Any = self.vae.config
        mode = self.vae.encode(x).latent_dist.mode().float()
        return (mode - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


class MovqEncoder(VaeEncoder):
    """Frozen encoder of a VQModel. Its latents are neither quantised nor scaled, as in the Kandinsky 2.2 pipelines."""

    def _encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latents.float()


def latent_geometry(folder: Path, kind: str = "AutoencoderKL") -> tuple[int, int]:
    """Return the number of latent channels and the factor by which the VAE shrinks a side, from the config alone.

    Args:
        folder: the part's folder, with its config.
        kind: the diffusers class that the family takes.
    Raises: WeightsMismatch if it is of another class.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") != kind:
        raise WeightsMismatch(f"the VAE in '{folder}' is a {config.get('_class_name')}; this family takes {kind}.")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise WeightsMismatch(f"the VAE in '{folder}' normalises latents by channel, which this family does not do.")
    channels = config["latent_channels"] if kind == "AutoencoderKL" else config.get("vq_embed_dim")
    return channels or config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)


def load_vae_encoder(folder: Path, *, dtype: torch.dtype, images: bool = True) -> VaeEncoder:
    """Load the encoder of an AutoencoderKL, or without `images` nothing of it: a stand-in that can't encode.

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
    if images:
        load_tensors(vae, folder, dtype=dtype, expected=expected)
    else:
        vae.encoder, vae.quant_conv = Absent(), Absent()
    return VaeEncoder(vae.eval().requires_grad_(False))


def load_movq_encoder(folder: Path, *, dtype: torch.dtype, images: bool = True) -> MovqEncoder:
    """Load the encoder of a VQModel, or without `images` a stand-in. Raises: WeightsMissing, WeightsMismatch."""
    from diffusers import VQModel

    config = VQModel.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        movq: Any = VQModel.from_config(config)
    expected = frozenset(movq.state_dict())
    movq.decoder, movq.post_quant_conv, movq.quantize = Absent(), Absent(), Absent()
    if images:
        load_tensors(movq, folder, dtype=dtype, expected=expected)
    else:
        movq.encoder, movq.quant_conv = Absent(), Absent()
    return MovqEncoder(movq.eval().requires_grad_(False))


def tiny_vae(resolution: int) -> Any:
    """Draw a tiny AutoencoderKL that halves an image's side, from the global generator, for tests."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=resolution,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=6.0,  # brings the random latents near unit variance: images stand out from the noise
        force_upcast=False,
    )
