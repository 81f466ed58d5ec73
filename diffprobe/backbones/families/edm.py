"""EDM: U-Nets over pixels (DDPM++, ADM), class-conditional or not, from research checkpoints in safetensors.

The preconditioning, the grid of noise levels and what stands for v are those of `edm2.py` (Karras et al., 2206.00364,
section 5). A checkpoint is a folder that `write_folder` makes: `unet/` with the published tensors. A class-conditional
network was not trained with a null class and has no `empty`.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, LoadOptions
from diffprobe.backbones.edm_network import EdmUNet
from diffprobe.backbones.families import edm2
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import edm_schedule
from diffprobe.backbones.weights import config_file, match_whole, read_config, read_tensors
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

_PART, _KIND, _PIPELINE = "unet", "EdmUNet", "EDM"
_STEPS = 1000
"""Timesteps of the grid, that of EDM2; the checkpoints themselves take any noise level."""
_UNUSED = ("map_augment.weight",)
"""Tensors that sampling does not use: the embedding of the augmentation in training."""


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == _PIPELINE


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    settings, where = read_config(checkpoint, _PART), config_file(checkpoint, _PART)
    if settings.get("_class_name") != _KIND:
        raise WeightsMismatch(f"'{where}' is of a {settings.get('_class_name')}; this family takes {_KIND}.")
    unet: EdmUNet = make_network(_KIND, settings, torch.device("meta"), where=where)
    config = unet.config
    images = edm2.find_input(checkpoint, config, resolution)

    def run(network: nn.Module) -> object:
        label = torch.zeros(1, dtype=torch.long, device="meta") if config.label_dim else None
        return network(images.empty(), torch.zeros(1, device="meta"), label)

    return BackboneSpec(
        family="edm",
        name=checkpoint.name,
        denoiser=unet,
        run=run,
        signature=digest_json([settings, images.side]),
        resolution=images.resolution,
        latent_shape=images.shape,
        layout=OutputLayout(size=images.shape[1:]),
        schedule=edm_schedule(_STEPS, config.sigma_data),
        prediction="v",
        conditions=("label", "prompt") if config.label_dim else ("empty",),
        blocks=tuple(unet.blocks),
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load of the U-Net only the modules in `needed`. Raises: WeightsMissing, WeightsMismatch."""
    return edm2.load(checkpoint, spec, needed, options)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return edm2.digests(checkpoint, trained)


def _published(name: str) -> str | None:
    """Return the name in the network of a published tensor; None for filters of resampling and what is not used."""
    own = name.removeprefix("model.")
    return None if own in _UNUSED or own.endswith(".resample_filter") else own


def write_folder(weights: Path | str, out: Path | str, **settings: object) -> Path:
    """Write the folder of a checkpoint from its tensors.

    Tensors `model.NAME` of the published class `EDMPrecond` are stored as NAME, in float32; the filters of resampling,
    which are boxes, and the embedding of the augmentation are left out.

    Args:
        weights: safetensors file with the published names.
        out: folder to write; it must not exist.
        settings: those of `EdmConfig`, and `model` for the published ones: `model="edm-imagenet-64x64-cond-adm"`.
    Returns: `out`.
    Raises: ConfigError if `out` exists; WeightsMissing without the file; WeightsMismatch if names or shapes of the
        tensors are not those of the settings, with the names (those of NCSN++ are not).
    """
    weights, out = Path(weights), Path(out)
    if out.exists():
        raise ConfigError(f"'{out}' exists already.", fix="name a new folder")
    if not weights.is_file():
        raise WeightsMissing(f"there is no file '{weights}'.", fix="name a safetensors file")
    network: EdmUNet = make_network(_KIND, settings, torch.device("meta"), where=weights)
    tensors = read_tensors(weights, dtype=torch.float32, rename=_published)
    try:
        edm2.write_part(out, tensors, settings, kind=_KIND, pipeline=_PIPELINE)
        match_whole(network, out / _PART)
    except WeightsMismatch:
        shutil.rmtree(out)
        raise
    return out


def tiny(path: Path | str, *, seed: int = 0, **changes: object) -> Path:
    """Write a tiny checkpoint with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        changes: settings of `EdmConfig` that differ from those of a small unconditional DDPM++ at 32 pixels.
    Returns: `path`.
    """
    path = Path(path)
    settings: dict[str, object] = {
        "architecture": "ddpmpp", "img_resolution": 32, "label_dim": 0, "model_channels": 16, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [16], "channels_per_head": 16, **changes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EdmUNet.from_config(settings)
    edm2.write_part(path, network.state_dict(), settings, kind=_KIND, pipeline=_PIPELINE)
    return path
