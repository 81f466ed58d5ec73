"""Shared by the families with a U-Net: building it from its config, its blocks and aliases, and the loaded backbone.

A family file adds the conditioning and the encoding of images. Loading is in `loading.py`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import BackboneSpec, Checkpoint, Condition, Prediction, PredictionKind
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import load_prediction_kind, load_schedule
from diffprobe.backbones.part_config import positive
from diffprobe.backbones.text_encoders import ClipTextEncoder
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
from diffprobe.backbones.vae import VaeEncoder, check_side
from diffprobe.backbones.weights import config_file, digest_files, read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.shapes import FeatureMap

GUIDANCE = 8.5
"""Guidance scale given to a U-Net with distilled guidance: the default of diffusers' pipeline for such models."""

_TEXT_ONLY = r"(.*\.)?(attn2\.to_[kv]|add_[kv]_proj)|(encoder_hid_proj|add_embedding)(\..*)?"
_CHANNELS_FIRST = r".*\.group_norm"


def read_unet_config(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """Read the config of the U-Net, or that of the weights that replace its own if they have one.

    Args:
        kind: the diffusers class it must be of.
    Raises: WeightsMissing, WeightsMismatch.
    """
    config = read_config(checkpoint, "unet")
    if config.get("_class_name", kind) != kind:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' is a {config['_class_name']}; pipelines of this family have a {kind}."
        )
    return config


def make_unet(checkpoint: Checkpoint, config: dict[str, Any], kind: str = "UNet2DConditionModel") -> Any:
    """Build the U-Net of diffusers' class `kind` from its config, on the meta device. Raises: WeightsMismatch."""
    return make_network(kind, config, torch.device("meta"), where=config_file(checkpoint, "unet"))


def check_latents(checkpoint: Checkpoint, config: dict[str, Any], channels: int) -> None:
    """Check that a U-Net takes the latents of its VAE. Raises: WeightsMismatch."""
    path = config_file(checkpoint, "unet")
    taken = positive(config, "in_channels", 4, where=path)
    if taken != channels:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' takes {taken} channels, its VAE gives {channels}.",
            "inpainting and other image-conditioned U-Nets are not supported",
            f"in: {path}",
        )


def image_side(
    checkpoint: Checkpoint, config: dict[str, Any], resolution: int | None, *, multiple: int, factor: int = 1
) -> int:
    """Return the image side in pixels: the requested one, or the U-Net's own.

    Args:
        multiple: number that divides every allowed side.
        factor: pixels per latent place.
    Raises: ConfigError.
    """
    own = config.get("sample_size")
    if isinstance(own, list) and len(own) == 2 and own[0] == own[1]:
        own = own[0]
    if resolution is None and (not isinstance(own, int) or own < 1):
        raise ConfigError(
            f"the U-Net of '{checkpoint.name}' has no square size of its own (sample_size: {str(own)[:80]}).",
            fix=f"set features.resolution to a multiple of {multiple}",
        )
    side = factor * own if resolution is None else resolution  # type: ignore[operator]
    check_side(side, checkpoint.name)
    if side % multiple:
        raise ConfigError(
            f"resolution {side} is not a multiple of {multiple}, the downscaling factor of '{checkpoint.name}'.",
            fix=f"features.resolution={max(multiple, side // multiple * multiple)}",
        )
    return side


def unet_spec(
    family: str,
    checkpoint: Checkpoint,
    unet: Any,
    *,
    run: Callable[[nn.Module], object],
    signature: Sequence[Any],
    side: int,
    latent_shape: tuple[int, int, int],
    conditions: tuple[str, ...],
    conditioning: dict[str, Any] | None = None,
    scheduler: Path | None = None,
) -> BackboneSpec:
    """Describe a U-Net on the meta device; see `BackboneSpec`.

    Args:
        signature: what fixes the shapes of the pass, as JSON.
        scheduler: folder of the scheduler's config; None takes the pipeline's own part.
    Raises: WeightsMissing, WeightsMismatch.
    """
    downs = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    ups = [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    scheduler = scheduler or checkpoint.part("scheduler")
    mid = [] if unet.mid_block is None else ["mid_block"]
    return BackboneSpec(
        family=family,
        name=checkpoint.name,
        denoiser=unet,
        run=run,
        signature=digest_json([*signature]),
        resolution=side,
        latent_shape=latent_shape,
        schedule=load_schedule(scheduler),
        prediction=load_prediction_kind(scheduler),
        layout=OutputLayout(size=latent_shape[1:], text_only=_TEXT_ONLY, channels_first=_CHANNELS_FIRST),
        conditions=conditions,
        aliases={
            **({"bottleneck": "mid_block", "h-space": "mid_block"} if mid else {}),
            **{f"up_ft{i}": path for i, path in enumerate(ups)},
        },
        blocks=(*downs, *mid, *ups),
        conditioning=conditioning or {},
    )


def digest_tokenizer(folder: Path) -> str:
    """Digest the files that fix the tokens of a text."""
    return digest_files([folder / name for name in TOKENIZER_FILES])


def guidance_embedding(config: dict[str, Any], scale: float = GUIDANCE) -> Float[Tensor, "1 width"] | None:
    """Embed the guidance scale for a U-Net with distilled guidance; None for others.

    Sources: Meng et al., 2210.03142; `get_guidance_scale_embedding` of diffusers, which embeds w = scale - 1.
    """
    width = config.get("time_cond_proj_dim")
    if width is None:
        return None
    half = width // 2
    rates = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (scale - 1) * 1000.0 * rates
    row = torch.cat([angles.sin(), angles.cos(), torch.zeros(width % 2)])
    return row[None]


class TextUnet(TextBackbone[ClipTextEncoder]):
    """A loaded U-Net over VAE latents that is conditioned on texts.

    Args:
        unet: the network.
        vae: encodes images.
        texts: the text encoders, by the names of their parts.
        guidance: the embedded guidance scale, for U-Nets that take one.
        prediction: what the U-Net predicts.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: VaeEncoder,
        texts: dict[str, ClipTextEncoder],
        guidance: Tensor | None,
        *,
        prediction: PredictionKind,
    ) -> None:
        super().__init__(unet, vae, texts, self.encode, prediction=prediction)
        self._guidance = None if guidance is None else guidance.to(_dtype(unet))

    @abstractmethod
    def encode(self, prompts: list[str]) -> Condition:
        """Encode prompts, one row each."""

    def embed_guidance(self, scale: float) -> None:
        """Give a U-Net with distilled guidance another scale; see `guidance_embedding`.

        Raises: ConfigError for a U-Net that takes none.
        """
        if self._guidance is None:
            super().embed_guidance(scale)
        network: Any = self.denoiser
        embedded = guidance_embedding(dict(network.config), scale)
        assert embedded is not None
        self._guidance = embedded.to(self._guidance)

    def run_unet(
        self,
        x_t: FeatureMap,
        timesteps: Int[Tensor, " rows"],
        text: Float[Tensor, "rows tokens width"],
        **conditioning: object,
    ) -> Prediction:
        """Run the U-Net once."""
        scale = None if self._guidance is None else self._guidance.expand(len(x_t), -1)
        output = self.denoiser(
            x_t, timesteps, encoder_hidden_states=text, timestep_cond=scale, return_dict=False, **conditioning
        )
        return self.predicted(output[0], x_t)

    def to(self, device: torch.device) -> None:
        """Move all loaded networks, the cached prompts, and the guidance."""
        super().to(device)
        if self._guidance is not None:
            self._guidance = self._guidance.to(device)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
