"""EDM2: U-Nets over pixels or VAE latents, class-conditional or not, from research checkpoints in safetensors.

EDM's network stands inside a preconditioning (Karras et al., 2206.00364, section 5): its input is scaled to unit
variance, and its output is combined with the input to an image. Here images have unit variance and are noised so that
x_t is what the network takes; its output is then minus v, and is turned. Timestep t is on a grid of 1000 noise levels,
0.002 (t = 0) to 80 (t = 999), those of EDM's sampler with so many steps (equation 5).

A checkpoint is a folder that `write_folder` makes: `unet/` with the published tensors, and for a network over latents
a Stable Diffusion VAE in `vae/`. A class-conditional network was not trained with a null class and has no `empty`.
"""

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import (
    Backbone,
    BackboneSpec,
    Checkpoint,
    Condition,
    ConditionInput,
    LoadOptions,
    Prediction,
)
from diffprobe.backbones.edm2_network import Edm2Config, Edm2UNet
from diffprobe.backbones.edm_network import EdmConfig, EdmUNet
from diffprobe.backbones.families.dit import Dit
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.loading import load_denoiser, make_network, require_parts
from diffprobe.backbones.noise import edm_schedule, edm_sigmas
from diffprobe.backbones.part_config import CONFIG
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.transformer import LatentGrid, find_latents
from diffprobe.backbones.vae import EDM2_MEAN, VaeEncoder, latent_geometry, load_vae_encoder
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import (
    config_file,
    digest_denoiser,
    digest_part,
    match_whole,
    read_config,
    read_tensors,
)
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.shapes import FeatureMap, Images

_PART = "unet"
_KIND, _VAE = "Edm2UNet", "AutoencoderKLEdm2"
_STEPS = 1000
"""Timesteps of the grid; the checkpoints themselves take any noise level."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "EDM2"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    settings = read_config(checkpoint, _PART)
    where = config_file(checkpoint, _PART)
    if settings.get("_class_name") != _KIND:
        raise WeightsMismatch(f"'{where}' is of a {settings.get('_class_name')}; this family takes {_KIND}.")
    unet: Edm2UNet = make_network(_KIND, settings, torch.device("meta"), where=where)
    config = unet.config
    latents = find_input(checkpoint, config, resolution)

    def run(network: nn.Module) -> object:
        label = torch.zeros(1, dtype=torch.long, device="meta") if config.label_dim else None
        return network(latents.empty(), torch.zeros(1, device="meta"), label)

    blocks = [f"{part}.{name}" for part in ("enc", "dec") for name in unet.get_submodule(part)._modules]
    return BackboneSpec(
        family="edm2",
        name=checkpoint.name,
        denoiser=unet,
        run=run,
        signature=digest_json([settings, latents.side]),
        resolution=latents.resolution,
        latent_shape=latents.shape,
        layout=OutputLayout(size=latents.shape[1:]),
        schedule=edm_schedule(_STEPS, config.sigma_data),
        prediction="v",
        conditions=("label", "prompt") if config.label_dim else ("empty",),
        blocks=tuple(path for path in blocks if not path.endswith("_conv")),
    )


def find_input(checkpoint: Checkpoint, config: Edm2Config | EdmConfig, resolution: int | None) -> LatentGrid:
    """Return the shape of what is denoised.

    Args:
        config: settings of the network, which give its side and channels.
        resolution: the requested image side; None takes its own, the only one that it has.
    Raises: WeightsMissing, WeightsMismatch, ConfigError.
    """
    own, channels = config.img_resolution, config.img_channels
    if "vae" in checkpoint.index:
        return find_latents(checkpoint, resolution, own=own, patch=1, channels=channels, only_own=True, vae=_VAE)
    if channels != 3:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' takes {channels} channels, and its index names no VAE.",
            "allowed: 3, of pixels",
        )
    if resolution not in (None, own):
        raise ConfigError(
            f"resolution {resolution}, but '{checkpoint.name}' takes its own alone.",
            f"allowed: {own}",
            fix=f"features.resolution={own}",
        )
    return LatentGrid(own, channels, own)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load the VAE encoder, if there is one, and of the U-Net only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    has_vae = "vae" in checkpoint.index
    require_parts(checkpoint, _PART, ("vae",) if has_vae else (), trained=options.random_seed is None)
    unet = cast(Edm2UNet | EdmUNet, load_denoiser(checkpoint, spec, needed, options, part=_PART))
    if not has_vae:
        return Edm2(unet, None, name=checkpoint.name)
    vae = load_vae_encoder(checkpoint.part("vae"), dtype=options.dtype, images=options.images)
    return Edm2(unet, vae, name=checkpoint.name)


class Edm2(Dit):
    """A loaded checkpoint of EDM2, or of EDM, whose preconditioning is the same.

    Args:
        denoiser: the network, pruned.
        vae: encodes images; None for a network over pixels.
        name: of the checkpoint, for messages.
    """

    def __init__(self, denoiser: Edm2UNet | EdmUNet, vae: VaeEncoder | None, *, name: str) -> None:
        super().__init__(denoiser, cast(Any, vae), n_classes=denoiser.config.label_dim, name=name, prediction="v")
        self._config, self._has_vae = denoiser.config, vae is not None
        self._levels = (edm_sigmas(_STEPS).log() / 4).float()

    def encode_images(self, images: Images) -> FeatureMap:
        """Encode images to latents, or scale pixels from [0, 1] by way of [-1, 1], to about unit variance."""
        return self._vae(images) if self._has_vae else (images.float() * 2 - 1) / self._config.sigma_data

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Return class ids; nothing for an unconditional network. Raises: ConfigError, see `Dit`."""
        return super().encode_conditions(values) if self._config.label_dim else {}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the U-Net once."""
        levels = self._levels.to(x_t.device)[timesteps]
        return self.predicted(-self.denoiser(x_t, levels, condition.get("class_labels")), x_t)

    def components(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""
        return super().components() if self._has_vae else {"denoiser": self.denoiser}


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    found = {"denoiser": digest_denoiser(checkpoint, _PART, weights=trained)}
    if "vae" in checkpoint.index:
        require_files(checkpoint.part("vae"))
        found["vae"] = digest_part(checkpoint.part("vae"))
    return found


def _published(name: str) -> str | None:
    """Return the name in the network of a published tensor; None for those of the loss's uncertainty."""
    return None if name.startswith("logvar_") else name.removeprefix("unet.")


def write_folder(weights: Path | str, out: Path | str, *, vae: Path | str | None = None, **settings: object) -> Path:
    """Write the folder of a checkpoint from its tensors, and a VAE for a network over latents.

    Tensors `unet.NAME` of the published class `Precond` are stored as NAME, in float32; `logvar_...` are left out. The
    VAE's config gets the class `AutoencoderKLEdm2`, since EDM2 encodes images in [0, 1] and normalises by channel.

    Args:
        weights: safetensors file with the published names.
        out: folder to write; it must not exist.
        vae: folder of an AutoencoderKL of Stable Diffusion, in diffusers' format; None for a network over pixels.
        settings: those of `Edm2Config`, and `model` for the published ones: `model="edm2-img512-s"`; with `label_dim=0`
            an unconditional one.
    Returns: `out`.
    Raises: ConfigError if `out` exists; WeightsMissing without the files; WeightsMismatch if names or shapes of the
        tensors are not those of the settings, with the names.
    """
    weights, out = Path(weights), Path(out)
    if out.exists():
        raise ConfigError(f"'{out}' exists already.", fix="name a new folder")
    if not weights.is_file():
        raise WeightsMissing(f"there is no file '{weights}'.", fix="name a safetensors file")
    network: Edm2UNet = make_network(_KIND, settings, torch.device("meta"), where=weights)
    channels = 3 if vae is None else latent_geometry(Path(vae))[0]
    if channels != network.config.img_channels or (vae is not None and channels != len(EDM2_MEAN)):
        what = "pixels have" if vae is None else f"the VAE '{vae}' gives"
        raise WeightsMismatch(
            f"the network takes {network.config.img_channels} channels, {what} {channels}.",
            "allowed: 3 without a VAE, 4 with one",
        )
    tensors = read_tensors(weights, dtype=torch.float32, rename=_published)
    try:
        write_part(out, tensors, settings, kind=_KIND, pipeline="EDM2")
        match_whole(network, out / _PART)
    except WeightsMismatch:
        shutil.rmtree(out)
        raise
    if vae is not None:
        shutil.copytree(vae, out / "vae")
        _mark(out)
    return out


def write_part(out: Path, tensors: dict[str, Tensor], settings: dict[str, object], *, kind: str, pipeline: str) -> None:
    """Write the U-Net of a checkpoint and its index, without a VAE.

    Args:
        out: folder of the checkpoint, created if it does not exist.
        tensors: those of the network, by its own names.
        settings: those of its config.json.
        kind: class of the network.
        pipeline: class in the index, by which the family is found.
    """
    from safetensors.torch import save_file

    (out / _PART).mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / _PART / _WEIGHTS, metadata={"format": "pt"})
    config = json.dumps({"_class_name": kind, **settings}, indent=2)
    (out / _PART / CONFIG).write_text(config, encoding="utf-8")
    index = {"_class_name": pipeline, _PART: ["diffprobe", kind]}
    (out / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _mark(out: Path) -> None:
    """State in the index that there is a VAE, and in its config that it is EDM2's."""
    index, config = out / "model_index.json", out / "vae" / CONFIG
    entry = {"vae": ["diffusers", "AutoencoderKL"]}
    for path, more in ((index, entry), (config, {"_class_name": _VAE})):
        found = json.loads(path.read_text(encoding="utf-8")) | more
        path.write_text(json.dumps(found, indent=2), encoding="utf-8")


def tiny(path: Path | str, *, seed: int = 0, pixels: bool = False, **changes: object) -> Path:
    """Write a tiny checkpoint with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        pixels: make one over pixels, without classes.
        changes: settings of `Edm2Config` that differ from those of a small EDM2 at 32 pixels with ten classes.
    Returns: `path`.
    """
    path = Path(path)
    settings: dict[str, object] = {
        "img_resolution": 32 if pixels else 16, "img_channels": 3 if pixels else 4, "label_dim": 0 if pixels else 10,
        "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
        "channels_per_head": 16, **changes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Edm2UNet.from_config(settings)
        for parameter in network.parameters():
            if parameter.ndim == 0:  # gains, which are 0 in a new network
                nn.init.constant_(parameter, 0.7)
        vae = None if pixels else tiny_vae(32, latent_channels=4)
    write_part(path, network.state_dict(), settings, kind=_KIND, pipeline="EDM2")
    if vae is not None:
        vae.save_pretrained(path / "vae")
        _mark(path)
    return path
