"""SiT and REPA: class-conditional flow transformers over VAE latents, from research checkpoints in safetensors.

Timestep t runs from 0 (clean) to 1000 (noise alone), as in all families, and the prediction is noise - image. SiT's own
checkpoints count time from noise (0) to image (1) and output image - noise; REPA's count as we do, over 0..1. Both are
turned here, by `convention` in the config. The id after the last class is the null class.

A checkpoint is a folder that `write_folder` makes: `transformer/` with the published tensors, and a Stable Diffusion
VAE in `vae/`. The path of the flow is the linear one.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.families.dit import Dit
from diffprobe.backbones.latent_backbone import load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import flow_schedule
from diffprobe.backbones.part_config import CONFIG
from diffprobe.backbones.sit_network import SiT
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.transformer import PART, describe_denoiser, digest_parts, find_latents
from diffprobe.backbones.vae import VaeEncoder, latent_geometry
from diffprobe.backbones.weights import match_whole, read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMissing
from diffprobe.core.shapes import FeatureMap

_STEPS = 1000
"""Timesteps of the grid; the checkpoints themselves take any time in 0..1."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = {"_class_name": "SiT", "transformer": ["diffprobe", "SiT"], "vae": ["diffusers", "AutoencoderKL"]}


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "SiT"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    sit: SiT = describe_denoiser(checkpoint, "SiT")
    config = sit.config
    latents = find_latents(
        checkpoint, resolution, own=config.input_size, patch=config.patch_size, channels=config.in_channels,
        only_own=True,
    )  # fmt: skip

    def run(network: nn.Module) -> object:
        one = torch.zeros(1, dtype=torch.long, device="meta")
        return network(latents.empty(), torch.zeros(1, device="meta"), one)

    return BackboneSpec(
        family="sit",
        name=checkpoint.name,
        denoiser=sit,
        run=run,
        signature=digest_json([read_config(checkpoint, PART), latents.side]),
        resolution=latents.resolution,
        latent_shape=latents.shape,
        layout=OutputLayout(size=latents.shape[1:], heads=r"blocks\.\d+\.attn\.[qk]_norm"),
        schedule=flow_schedule(_STEPS),
        prediction="flow",
        conditions=("empty", "label", "prompt") if config.class_dropout else ("label", "prompt"),
        blocks=tuple(f"blocks.{i}" for i in range(config.depth)),
        conditioning={"convention": config.convention},
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load the VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    sit, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART)
    return Sit(cast(SiT, sit), vae, name=checkpoint.name)


class Sit(Dit):
    """A loaded checkpoint of SiT or REPA.

    Args:
        denoiser: the network, pruned.
        vae: encodes images.
        name: of the checkpoint, for messages.
    """

    def __init__(self, denoiser: SiT, vae: VaeEncoder, *, name: str) -> None:
        super().__init__(denoiser, vae, n_classes=denoiser.config.num_classes, name=name, prediction="flow")
        self._from_noise = denoiser.config.convention == "sit"

    def denoise(self, x_t: FeatureMap, timesteps: Int[torch.Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once, in its own direction of time."""
        times = timesteps.float() / _STEPS
        output = self.denoiser(x_t, 1 - times if self._from_noise else times, condition["class_labels"])
        return self.predicted(-output if self._from_noise else output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained)


def write_folder(weights: Path | str, vae: Path | str, out: Path | str, **settings: object) -> Path:
    """Write the folder of a checkpoint from its tensors and a VAE; nothing of the tensors is changed.

    Args:
        weights: safetensors file with the published names, of the averaged weights (`ema`).
        vae: folder of an AutoencoderKL of Stable Diffusion, in diffusers' format.
        out: folder to write; it must not exist.
        settings: those of `SitConfig`, and `model` for its sizes: `model="SiT-XL/2", input_size=32, convention="sit",
            learn_sigma=True` for the published SiT at 256 x 256 pixels.
    Returns: `out`.
    Raises: ConfigError if `out` exists; WeightsMissing without the files; WeightsMismatch if names or shapes of the
        tensors are not those of the settings, with the names.
    """
    weights, vae, out = Path(weights), Path(vae), Path(out)
    if out.exists():
        raise ConfigError(f"'{out}' exists already.", fix="name a new folder")
    if not weights.is_file():
        raise WeightsMissing(f"there is no file '{weights}'.", fix="name a safetensors file")
    latent_geometry(vae)
    network = make_network("SiT", settings, torch.device("meta"), where=weights)
    match_whole(network, weights)
    (out / PART).mkdir(parents=True)
    shutil.copyfile(weights, out / PART / _WEIGHTS)
    shutil.copytree(vae, out / "vae")
    (out / PART / CONFIG).write_text(json.dumps({"_class_name": "SiT", **settings}, indent=2), encoding="utf-8")
    (out / "model_index.json").write_text(json.dumps(_INDEX, indent=2), encoding="utf-8")
    return out


def tiny(path: Path | str, *, seed: int = 0, **changes: object) -> Path:
    """Write a tiny checkpoint with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        changes: settings of `SitConfig` that differ from those of a small SiT at 32 pixels with ten classes.
    Returns: `path`.
    """
    from safetensors.torch import save_file

    path = Path(path)
    settings: dict[str, object] = {
        "hidden_size": 32, "depth": 3, "num_heads": 2, "patch_size": 2, "input_size": 16, "num_classes": 10,
        "convention": "sit", "learn_sigma": True, **changes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SiT.from_config(settings)
        vae = tiny_vae(32, latent_channels=4)
    (path / PART).mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path / PART / _WEIGHTS, metadata={"format": "pt"})
    vae.save_pretrained(path / "vae")
    (path / PART / CONFIG).write_text(json.dumps({"_class_name": "SiT", **settings}), encoding="utf-8")
    (path / "model_index.json").write_text(json.dumps(_INDEX), encoding="utf-8")
    return path
