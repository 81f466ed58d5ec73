"""Pixel-space pipelines of one U-Net (DDPM, DDIM): images in [-1, 1] are noised themselves, there is no autoencoder.

An unconditional U-Net takes no condition. A class-conditional one takes a class: the sample's own (`label`), or a fixed
one for all samples (`prompt`, its number as text). It has no `empty`: the config does not state whether one of the
classes was trained as the null class; where it was, choose it by `prompt`.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

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
from diffprobe.backbones.loading import load_denoiser, require_parts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.unet import (
    image_side,
    make_unet,
    read_unet_config,
    unet_spec,
)
from diffprobe.backbones.weights import digest_denoiser
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.shapes import FeatureMap, Images

_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
_KIND = "UNet2DModel"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _PIPELINES


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    config = read_unet_config(checkpoint, _KIND)
    _check(checkpoint, config)
    unet = make_unet(checkpoint, config, _KIND)
    side = image_side(checkpoint, config, resolution, multiple=2 ** (len(unet.down_blocks) - 1))
    n_classes = config.get("num_class_embeds")

    def run(network: nn.Module) -> object:
        return network(
            torch.empty(1, 3, side, side, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            class_labels=None if n_classes is None else torch.zeros(1, dtype=torch.long, device="meta"),
            return_dict=False,
        )

    return unet_spec(
        "unet2d",
        checkpoint,
        unet,
        run=run,
        signature=[config, side],
        side=side,
        latent_shape=(3, side, side),
        conditions=("empty",) if n_classes is None else ("label", "prompt"),
        scheduler=_scheduler(checkpoint),
    )


def _check(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Check that input and time of the U-Net are of the supported kinds. Raises: WeightsMismatch."""
    allowed: dict[str, tuple[Any, ...]] = {
        "in_channels": (3,),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "time_embedding_type": ("positional", "learned"),
    }
    wrong = [
        f"{name}: {config[name]}; allowed: {', '.join(map(str, values))}"
        for name, values in allowed.items()
        if config.get(name, values[0]) not in values
    ]
    if wrong:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' does not take RGB images in [-1, 1] on a grid of timesteps.", *wrong
        )


def _scheduler(checkpoint: Checkpoint) -> Path:
    """Return the folder of the scheduler's config; a pipeline of one network may have it next to its index."""
    folder = checkpoint.part("scheduler")
    return folder if folder.is_dir() else folder.parent


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load of the U-Net only the modules in `needed`. Raises: WeightsMissing, WeightsMismatch."""
    require_parts(checkpoint, "unet", (), trained=options.random_seed is None)
    unet = load_denoiser(checkpoint, spec, needed, options, part="unet")
    n_classes = read_unet_config(checkpoint, _KIND).get("num_class_embeds")
    return PixelUnet(unet, checkpoint.name, n_classes, prediction=spec.prediction)


class PixelUnet(Backbone):
    """A loaded U-Net over pixels.

    Args:
        unet: the network.
        name: of the checkpoint, for messages.
        n_classes: number of classes; None for an unconditional one.
        prediction: what the U-Net predicts.
    """

    def __init__(self, unet: nn.Module, name: str, n_classes: int | None, *, prediction: PredictionKind) -> None:
        self.denoiser, self._name, self._n_classes, self.prediction = unet, name, n_classes, prediction

    def encode_images(self, images: Images) -> FeatureMap:
        """Scale images from [0, 1] to [-1, 1]."""
        return images.float() * 2 - 1

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Turn classes into labels. Raises: ConfigError for a class that does not exist."""
        if self._n_classes is None:
            return {}
        labels = [_as_class(value) for value in values]
        bad = [repr(v) for v, label in zip(values, labels, strict=True) if not 0 <= label < self._n_classes]
        if bad:
            raise ConfigError(
                f"backbone '{self._name}' has no class {', '.join(bad[:3])}.",
                f"allowed: 0..{self._n_classes - 1}",
                fix="condition=label takes the samples' labels, condition=prompt the number of a class: prompt='0'",
            )
        return {"class_labels": torch.tensor(labels, device=next(self.denoiser.parameters()).device)}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the U-Net once."""
        return self.predicted(self.denoiser(x_t, timesteps, **condition, return_dict=False)[0], x_t)

    def components(self) -> dict[str, nn.Module]:
        """Name the loaded network."""
        return {"denoiser": self.denoiser}


def _as_class(value: ConditionInput) -> int:
    """Parse a class id; -1, which is never valid, for anything but a number."""
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() else -1


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the U-Net. Raises: WeightsMissing."""
    require_parts(checkpoint, "unet", (), trained=trained)
    return {"denoiser": digest_denoiser(checkpoint, "unet", weights=trained)}


def tiny(
    path: Path | str,
    *,
    seed: int = 0,
    resolution: int = 16,
    n_classes: int | None = None,
    pipeline: str = "DDPMPipeline",
    channels: Sequence[int] = (16, 32, 32),
    attention: Collection[int] = (1,),
    layers: int = 1,
) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        resolution: image side in pixels.
        n_classes: number of classes; None makes an unconditional U-Net.
        pipeline: `DDPMPipeline` or `DDIMPipeline`.
        channels: width of each level, highest first.
        attention: levels with attention, counted from 0, the highest.
        layers: blocks of each level on the way down.
    Returns: `path`.
    """
    import diffusers

    kinds = ["Attn" if level in attention else "" for level in range(len(channels))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=resolution,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            norm_num_groups=8,
            attention_head_dim=8,
            num_class_embeds=n_classes,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        )
    scheduler = getattr(diffusers, pipeline.replace("Pipeline", "Scheduler"))()
    getattr(diffusers, pipeline)(unet=unet, scheduler=scheduler).save_pretrained(path)
    return Path(path)
