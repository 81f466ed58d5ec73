"""Autoencoders of backbones: from images to scaled latents without loading the decoder, and from latents to images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffprobe.backbones.hooks import PrunedModule
from diffprobe.backbones.loading import load_network, make_network
from diffprobe.backbones.part_config import CONFIG, positive, read_part_config
from diffprobe.backbones.weights import load_tensors, match_tensors
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.json_file import read_json_object
from diffprobe.core.shapes import FeatureMap, Images

PIXELS = 2**20
"""Pixels per pass: bounds the memory of the first convolutions at any batch size."""
MAX_SIDE = 2**15
"""Largest image side in pixels; the shapes of a pass are computed for it."""
FLUX2_PATCH = 2
"""Latent places per side of a token of FLUX.2."""
_UNUSED = {
    "AutoencoderKL": ("decoder", "post_quant_conv"),
    "VQModel": ("decoder", "post_quant_conv", "quantize"),
    "AutoencoderDC": ("decoder",),
    "AutoencoderKLFlux2": ("decoder", "post_quant_conv"),
    "AutoencoderKLQwenImage": ("decoder", "post_quant_conv"),
    "AutoencoderKLWan": ("decoder", "post_quant_conv"),
    "AutoencoderKLCogVideoX": ("decoder", "post_quant_conv"),
    "AutoencoderKLLTXVideo": ("decoder",),
    "AutoencoderKLEdm2": ("decoder", "post_quant_conv"),
}
"""Parts of an autoencoder that encoding does not run, by its class in diffusers."""
_ENCODING = ("encoder", "quant_conv", "bn")
"""Parts that only encoding runs."""
_CHANNELS = {
    "AutoencoderKL": ("latent_channels", 4),
    "VQModel": ("latent_channels", 3),
    "AutoencoderDC": ("latent_channels", 32),
    "AutoencoderKLFlux2": ("latent_channels", 32),
    "AutoencoderKLQwenImage": ("z_dim", 16),
    "AutoencoderKLWan": ("z_dim", 16),
    "AutoencoderKLCogVideoX": ("latent_channels", 16),
    "AutoencoderKLLTXVideo": ("latent_channels", 128),
    "AutoencoderKLEdm2": ("latent_channels", 4),
}
"""Key of the latent channels in the config of each class, and their number if the config states none."""
_LEVELS = {
    "AutoencoderKL": ("block_out_channels", 1),
    "VQModel": ("block_out_channels", 1),
    "AutoencoderDC": ("encoder_block_out_channels", 6),
    "AutoencoderKLFlux2": ("block_out_channels", 4),
    "AutoencoderKLQwenImage": ("dim_mult", 4),
    "AutoencoderKLWan": ("dim_mult", 4),
    "AutoencoderKLCogVideoX": ("block_out_channels", 4),
    "AutoencoderKLLTXVideo": ("block_out_channels", 4),
    "AutoencoderKLEdm2": ("block_out_channels", 1),
}
"""Key of the levels in the config of each class, and their number if the config states none."""
_BY_CHANNEL = ("AutoencoderKLQwenImage", "AutoencoderKLWan")
"""Autoencoders for video whose latents are normalised with the means and deviations of their config."""
VIDEO_VAES = (*_BY_CHANNEL, "AutoencoderKLCogVideoX", "AutoencoderKLLTXVideo")
"""Autoencoders for video, which get an image as their only frame."""
EDM2_MEAN, EDM2_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
"""Statistics by channel of the latents that EDM2 was trained on (`training/encoders.py` of its code)."""
_UNSHIFTED = ("Kandinsky5T2IPipeline",)
"""Pipelines that scale latents without the shift, whatever the config of their autoencoder states (that of FLUX)."""
_MAX_LEVELS = 12
"""Levels of an autoencoder, each of which halves a side; published ones have at most six."""


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

        Raises: WeightsMissing if it was loaded for kept latents only.
        """
        if isinstance(self.vae.encoder, PrunedModule):
            raise WeightsMissing("the VAE was not loaded: this backbone reads kept latents only.")
        dtype = next(self.vae.parameters()).dtype
        rows = max(1, PIXELS // (images.shape[2] * images.shape[3]))
        return torch.cat([self._encode((chunk * 2 - 1).to(dtype)) for chunk in images.split(rows)])

    def _encode(self, x: Tensor) -> Tensor:
        config: Any = self.vae.config
        mode = self.vae.encode(x).latent_dist.mode().float()
        return (mode - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


class MovqEncoder(VaeEncoder):
    """Frozen encoder of a VQModel. Its latents are neither quantised nor scaled, as in the Kandinsky 2.2 pipelines."""

    def _encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latents.float()


class DcEncoder(VaeEncoder):
    """Frozen encoder of an AutoencoderDC (deep compression), whose latents have no distribution and no shift."""

    def _encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent.float() * self.vae.config.scaling_factor


class Flux2Encoder(VaeEncoder):
    """Frozen encoder of an AutoencoderKLFlux2: the 2 x 2 places of a token stand on the channel axis.

    They are normalised by the statistics of the autoencoder's batch norm, as in `Flux2Pipeline._encode_vae_image`.
    """

    def _encode(self, x: Tensor) -> Tensor:
        places = pixel_unshuffle(self.vae.encode(x).latent_dist.mode().float(), FLUX2_PATCH)
        mean, std = _batch_norm(self.vae)
        return (places - mean) / std


class FrameEncoder(VaeEncoder):
    """Frozen encoder of an autoencoder in `VIDEO_VAES`, which gets the image as its only frame.

    Latents are normalised by channel, with the means and deviations of its config or (LTX) its weights, or scaled if it
    has none.
    """

    def _encode(self, x: Tensor) -> Tensor:
        mode = self.vae.encode(x[:, :, None]).latent_dist.mode()[:, :, 0].float()
        mean, std = _channel_statistics(self.vae)
        return (mode - mean) / std


class Edm2Encoder(VaeEncoder):
    """Frozen encoder of the AutoencoderKL of Stable Diffusion as EDM2 uses it: images in [0, 1], latents by channel.

    The class is named `AutoencoderKLEdm2` in its config.
    """

    def _encode(self, x: Tensor) -> Tensor:
        mean, std = _edm2_statistics(x.device)
        return (self.vae.encode((x + 1) / 2).latent_dist.mode().float() - mean) / std


def _edm2_statistics(
    device: torch.device,
) -> tuple[Float[Tensor, "1 channels 1 1"], Float[Tensor, "1 channels 1 1"]]:
    mean, std = (torch.tensor(values, device=device).reshape(1, -1, 1, 1) for values in (EDM2_MEAN, EDM2_STD))
    return mean, std


def _batch_norm(vae: Any) -> tuple[Float[Tensor, "1 channels 1 1"], Float[Tensor, "1 channels 1 1"]]:
    mean, variance = (x.float().reshape(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _channel_statistics(vae: Any) -> tuple[Float[Tensor, "1 channels 1 1"], Float[Tensor, "1 channels 1 1"]]:
    config, device = vae.config, next(vae.parameters()).device
    if type(vae).__name__ in _BY_CHANNEL:
        given = config.latents_mean, config.latents_std
    elif type(vae).__name__ == "AutoencoderKLLTXVideo":
        given = vae.latents_mean, vae.latents_std.float() / config.scaling_factor
    else:
        given = [0.0], [1 / config.scaling_factor]
    mean, std = (torch.as_tensor(x, device=device).float().reshape(1, -1, 1, 1) for x in given)
    return mean, std


class VaeDecoder:
    """Frozen decoder of an autoencoder, in float32.

    Args:
        vae: the autoencoder; only `decode` is used.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @classmethod
    def from_folder(cls, folder: Path) -> "VaeDecoder":
        """Load the autoencoder of a folder. Raises: WeightsMissing, WeightsMismatch."""
        kind = _class_of(read_part_config(folder / CONFIG))
        decoder = _DECODERS.get(kind, cls)
        network = load_network(kind if kind in _ENCODERS else "AutoencoderKL", folder, **_changes(folder))
        return decoder(network.requires_grad_(False))

    @torch.no_grad()
    def __call__(self, latents: FeatureMap) -> Images:
        """Decode scaled latents, as `VaeEncoder` gives them, to images in [0, 1]; values outside are clipped."""
        z = self._unscale(latents.float())
        rows = max(1, PIXELS // (64 * z.shape[2] * z.shape[3]))
        return torch.cat([(self._decode(part) / 2 + 0.5).clamp(0, 1) for part in z.split(rows)])

    def _unscale(self, latents: Tensor) -> Tensor:
        config: Any = self.vae.config
        return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def _decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.vae.decode(z).sample
        return found


class Flux2Decoder(VaeDecoder):
    """Frozen decoder of an AutoencoderKLFlux2; see `Flux2Encoder`."""

    def _unscale(self, latents: Tensor) -> Tensor:
        mean, std = _batch_norm(self.vae)
        return pixel_shuffle(latents * std + mean, FLUX2_PATCH)


class FrameDecoder(VaeDecoder):
    """Frozen decoder of an autoencoder in `VIDEO_VAES`; see `FrameEncoder`.

    One that takes the noise level of its latents (LTX 0.9.1) gets 0, the default of the pipeline.
    """

    def _unscale(self, latents: Tensor) -> Tensor:
        mean, std = _channel_statistics(self.vae)
        return latents * std + mean

    def _decode(self, z: Tensor) -> Tensor:
        clean = [z.new_zeros(len(z))] if getattr(self.vae.config, "timestep_conditioning", False) else []
        found: Tensor = self.vae.decode(z[:, :, None], *clean).sample[:, :, 0]
        return found


class Edm2Decoder(VaeDecoder):
    """Frozen decoder of the autoencoder of EDM2; see `Edm2Encoder`."""

    def _unscale(self, latents: Tensor) -> Tensor:
        mean, std = _edm2_statistics(latents.device)
        return latents * std + mean

    def _decode(self, z: Tensor) -> Tensor:
        return super()._decode(z) * 2 - 1


_ENCODERS: dict[str, type[VaeEncoder]] = {
    "AutoencoderDC": DcEncoder,
    "AutoencoderKLFlux2": Flux2Encoder,
    **dict.fromkeys(VIDEO_VAES, FrameEncoder),
    "AutoencoderKLEdm2": Edm2Encoder,
}
"""Encoders by the class of the autoencoder; all others are an AutoencoderKL."""
_DECODERS: dict[str, type[VaeDecoder]] = {
    "AutoencoderKLFlux2": Flux2Decoder,
    **dict.fromkeys(VIDEO_VAES, FrameDecoder),
    "AutoencoderKLEdm2": Edm2Decoder,
}


def check_side(side: int, name: str) -> None:
    """Check that an image side is one that images can have. Raises: ConfigError."""
    if not 0 < side <= MAX_SIDE:
        raise ConfigError(
            f"resolution {side} of '{name}' is out of range: 1..{MAX_SIDE}.", fix="set features.resolution"
        )


def latent_geometry(folder: Path, kind: str = "AutoencoderKL") -> tuple[int, int]:
    """Return the number of latent channels and the factor by which the VAE reduces a side, from the config alone.

    Those of an AutoencoderKLFlux2 count its patches of 2 x 2 places.

    Args:
        folder: the part's folder, with its config.
        kind: the diffusers class that the family takes.
    Raises: WeightsMissing; WeightsMismatch if it is of another class.
    """
    path = folder / CONFIG
    config = read_part_config(path)
    if config.get("_class_name") != kind:
        raise WeightsMismatch(f"the VAE in '{folder}' is a {config.get('_class_name')}; this family takes {kind}.")
    if kind in _BY_CHANNEL:
        _check_statistics(config, path, kind)
    elif config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise WeightsMismatch(
            f"the VAE in '{folder}' normalises latents by channel, which this family does not support."
        )
    key, default = _CHANNELS[kind]
    own = kind != "VQModel" or config.get("vq_embed_dim") is None
    channels = positive(config, key if own else "vq_embed_dim", default, where=path)
    key, default = _LEVELS[kind]
    levels = config.get(key, [64] * default)
    if not isinstance(levels, list) or not 0 < len(levels) <= _MAX_LEVELS:
        raise WeightsMismatch(
            f"'{path}': {key} is {str(levels)[:80]}.", f"allowed: a list of 1 to {_MAX_LEVELS} widths"
        )
    factor = 2 ** (len(levels) - 1)
    if kind == "AutoencoderKLWan":
        return channels, _wan_factor(config, path, factor)
    if kind == "AutoencoderKLLTXVideo":
        return channels, _ltx_factor(config, path)
    if kind != "AutoencoderKLFlux2":
        return channels, factor
    if list(config.get("patch_size", [FLUX2_PATCH] * 2)) != [FLUX2_PATCH] * 2:
        raise WeightsMismatch(
            f"'{path}': patch_size is {str(config['patch_size'])[:80]}.", f"allowed: [{FLUX2_PATCH}, {FLUX2_PATCH}]"
        )
    return channels * FLUX2_PATCH**2, factor * FLUX2_PATCH


def _wan_factor(config: Mapping[str, Any], path: Path, factor: int) -> int:
    """Return the factor of an AutoencoderKLWan that puts places of the image side by side before its levels.

    Raises: WeightsMismatch if it is not the factor for which its pipeline makes latents.
    """
    patch = 1 if config.get("patch_size") is None else positive(config, "patch_size", 1, where=path)
    stated, taken = (positive(config, *pair, where=path) for pair in (("scale_factor_spatial", 8), ("in_channels", 3)))
    if stated != factor * patch or taken != 3 * patch**2:
        raise WeightsMismatch(
            f"'{path}': scale_factor_spatial is {stated}, and in_channels {taken}.",
            f"allowed: {factor * patch} and {3 * patch**2}, by its levels and its patch_size",
        )
    return stated


def _ltx_factor(config: Mapping[str, Any], path: Path) -> int:
    """Return the factor of an AutoencoderKLLTXVideo, which puts places side by side before some of its levels halve.

    Raises: WeightsMismatch for another kind of levels, and if it states another factor.
    """
    kinds = set(config.get("down_block_types", ["LTXVideoDownBlock3D"]))
    factor = positive(config, "patch_size", 4, where=path) * 2 ** sum(
        map(bool, config.get("spatio_temporal_scaling", (True, True, True, False)))
    )
    stated = config.get("spatial_compression_ratio")
    if kinds != {"LTXVideoDownBlock3D"} or stated not in (None, factor):
        raise WeightsMismatch(
            f"'{path}' has {', '.join(sorted(map(str, kinds)))}, and spatial_compression_ratio is {stated}.",
            f"allowed: LTXVideoDownBlock3D, as up to LTX-Video 0.9.1, and {factor}",
        )
    return factor


def _check_statistics(config: Mapping[str, Any], path: Path, kind: str) -> None:
    """Check the means and deviations of the latents of an autoencoder for video. Raises: WeightsMismatch."""
    key, default = _CHANNELS[kind]
    n = positive(config, key, default, where=path)
    for name in ("latents_mean", "latents_std"):
        given = config.get(name, [1.0] * default)  # the class has its own
        numbers = isinstance(given, list) and all(isinstance(x, (int, float)) and math.isfinite(x) for x in given)
        if not numbers or len(given) != n or (name == "latents_std" and min(given) <= 0):
            raise WeightsMismatch(
                f"'{path}': {name} is {str(given)[:80]}.", f"allowed: {n} numbers, one per latent channel"
            )


def load_vae_encoder(folder: Path, *, dtype: torch.dtype, images: bool = True) -> VaeEncoder:
    """Load the encoder of an autoencoder with one in `_ENCODERS`, else of an AutoencoderKL.

    Without `images` this is a placeholder that cannot encode.

    In float16 the encoder stays in float32 where its config has `force_upcast`, since it would overflow.
    Raises: WeightsMissing, WeightsMismatch.
    """
    config = {**read_part_config(folder / CONFIG), **_changes(folder)}
    for name in ("scaling_factor", "shift_factor"):
        value = config.get(name) or 0.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise WeightsMismatch(f"'{folder / CONFIG}': {name} is {str(value)[:80]}.", "allowed: a number")
    if config.get("scaling_factor", 1) in (0, None):
        raise WeightsMismatch(
            f"'{folder / CONFIG}': scaling_factor is {config['scaling_factor']}.", "allowed: a number"
        )
    if dtype == torch.float16 and config.get("force_upcast", True):  # the class's own default
        dtype = torch.float32
    kind = _class_of(config) if _class_of(config) in _ENCODERS else "AutoencoderKL"
    encoder = _ENCODERS.get(kind, VaeEncoder)
    return encoder(_load_half(kind, config, folder, _UNUSED[kind], dtype, images))


def _changes(folder: Path) -> dict[str, Any]:
    """Return what a pipeline sets otherwise than the config of its autoencoder."""
    index = folder.parent / "model_index.json"
    name = read_json_object(index, error=WeightsMismatch).get("_class_name") if index.is_file() else None
    return {"shift_factor": None} if name in _UNSHIFTED else {}


def _class_of(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name"))


def load_movq_encoder(folder: Path, *, dtype: torch.dtype, images: bool = True) -> MovqEncoder:
    """Load the encoder of a VQModel, or without `images` a placeholder. Raises: WeightsMissing, WeightsMismatch."""
    config = read_part_config(folder / CONFIG)
    return MovqEncoder(_load_half("VQModel", config, folder, _UNUSED["VQModel"], dtype, images))


def _load_half(
    kind: str, config: Mapping[str, Any], folder: Path, unused: tuple[str, ...], dtype: torch.dtype, images: bool
) -> Any:
    """Load an autoencoder without its `unused` parts, and without `images` without its encoder too."""
    network, expected = _make_half(kind, config, folder, (*unused, *(() if images else _ENCODING)))
    if images:
        load_tensors(network, folder, dtype=dtype, expected=expected)
    else:  # what belongs to no part, such as the statistics of LTX, would stay on the meta device
        for module in network.modules():
            module._parameters.clear()
            module._buffers.clear()
    return network.eval().requires_grad_(False)


def _make_half(
    kind: str, config: Mapping[str, Any], folder: Path, unused: tuple[str, ...]
) -> tuple[Any, frozenset[str]]:
    """Build an autoencoder on the meta device without some parts; return also the names of all its parameters."""
    network = make_network(kind, config, torch.device("meta"), where=folder / CONFIG)
    expected = frozenset(network.state_dict())
    for name in unused:
        if hasattr(network, name):
            setattr(network, name, PrunedModule())
    return network, expected


def match_encoder(folder: Path) -> Any:
    """Build the encoder of an autoencoder on the meta device and compare it with the headers of its weights.

    Args:
        folder: the part's folder.
    Returns: the autoencoder without its decoder, on the meta device.
    Raises: WeightsMissing, WeightsMismatch.
    """
    config = read_part_config(folder / CONFIG)
    kind = config.get("_class_name")
    if kind not in _UNUSED:
        raise WeightsMismatch(f"the VAE in '{folder}' is a {kind}.", f"allowed: {', '.join(_UNUSED)}")
    network, expected = _make_half(kind, config, folder, _UNUSED[kind])
    match_tensors(network, folder, expected=expected)
    return network
