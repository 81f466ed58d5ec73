"""Shared by the families with a transformer: describing it from its config, the size of its latents, and digests.

A family file adds the class, the layout of its outputs, and its conditioning. Loading is in `latent_backbone.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import BackboneSpec, Checkpoint
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.noise import load_prediction_kind, load_schedule
from diffprobe.backbones.text_encoders import TEXT_CONDITIONS
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
from diffprobe.backbones.vae import check_side, latent_geometry
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import config_file, digest_denoiser, digest_files, digest_part, read_config
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch

PART = "transformer"
"""Name of the denoiser's part in these pipelines."""


@dataclass(frozen=True)
class LatentGrid:
    """Shape of the latents that a transformer denoises.

    Attributes:
        resolution: image side in pixels.
        channels: of the VAE.
        side: of the latents.
    """

    resolution: int
    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.side, self.side

    def empty(self) -> Tensor:
        """Make one on the meta device."""
        return torch.empty(1, *self.shape, device="meta")


def describe_denoiser(checkpoint: Checkpoint, kind: str) -> Any:
    """Make a checkpoint's transformer on the meta device.

    Args:
        kind: its diffusers class.
    Raises: WeightsMissing; WeightsMismatch if the config is of another class.
    """
    config = read_config(checkpoint, PART)
    name = config.get("_class_name")
    if name not in (kind, "Transformer2DModel"):  # the old name of several classes, still in their checkpoints
        raise WeightsMismatch(f"the transformer of '{checkpoint.name}' is a {name}; this family takes {kind}.")
    return make_network(kind, config, torch.device("meta"), where=config_file(checkpoint, PART))


def find_latents(
    checkpoint: Checkpoint,
    resolution: int | None,
    *,
    own: int,
    patch: int,
    channels: int,
    only_own: bool = False,
    vae: str = "AutoencoderKL",
) -> LatentGrid:
    """Return the shape of the latents at a resolution.

    Args:
        resolution: image side in pixels; None takes the checkpoint's own.
        own: side of the latents that the transformer was made for.
        patch: latent places on a side of one token.
        channels: latent channels that the transformer takes.
        only_own: whether it takes no other side.
        vae: diffusers class of the VAE.
    Raises: WeightsMissing; WeightsMismatch if VAE and transformer do not fit; ConfigError.
    """
    read_config(checkpoint, "vae")
    given, factor = latent_geometry(checkpoint.part("vae"), vae)
    if given != channels:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes {channels} latent channels, its VAE gives {given}."
        )
    side = own * factor if resolution is None else resolution
    if only_own and side != own * factor:
        raise ConfigError(
            f"resolution {side}, but the positions of '{checkpoint.name}' are fixed.",
            f"allowed: {own * factor}",
            fix=f"features.resolution={own * factor}",
        )
    check_side(side, checkpoint.name)
    if side % (factor * patch):
        raise ConfigError(
            f"resolution {side} of '{checkpoint.name}' is not a whole number of tokens.",
            f"allowed: multiples of {factor * patch}, which is {factor} (VAE) x {patch} (patch)",
        )
    return LatentGrid(side, channels, side // factor)


def check_positions(checkpoint: Checkpoint, latents: LatentGrid, most: int) -> None:
    """Check that an image fits into a transformer's positions, `most` latent places a side. Raises: ConfigError."""
    if latents.side > most:
        allowed = most * latents.resolution // latents.side
        raise ConfigError(
            f"resolution {latents.resolution} is beyond the positions of '{checkpoint.name}'.",
            f"allowed: at most {allowed}",
            fix=f"features.resolution={allowed}",
        )


def check_width(checkpoint: Checkpoint, what: str, given: int | None, taken: int | None) -> None:
    """Check that a text encoder fits the transformer. Raises: WeightsMismatch."""
    if given != taken:
        raise WeightsMismatch(
            f"{what} of '{checkpoint.name}' is {given} wide, its transformer takes {taken}.",
            "the parts come from different checkpoints",
        )


def transformer_spec(
    family: str,
    checkpoint: Checkpoint,
    transformer: Any,
    latents: LatentGrid,
    *,
    run: Callable[[nn.Module], object],
    layout: OutputLayout,
    blocks: Sequence[str],
    signature: Sequence[int] = (),
    conditions: tuple[str, ...] = TEXT_CONDITIONS,
    conditioning: Mapping[str, Any] | None = None,
) -> BackboneSpec:
    """Describe a transformer on the meta device; see `BackboneSpec`. Noise and prediction are those of its scheduler.

    Args:
        blocks: paths of its blocks, in the order in which they run, with `*` for their numbers: `blocks.*`.
        signature: what fixes the shapes of the pass besides config and latent side: the tokens of the text.
    Raises: WeightsMissing, WeightsMismatch.
    """
    return BackboneSpec(
        family=family,
        name=checkpoint.name,
        denoiser=transformer,
        run=run,
        signature=digest_json([read_config(checkpoint, PART), latents.side, *signature]),
        resolution=latents.resolution,
        latent_shape=latents.shape,
        layout=layout,
        schedule=load_schedule(checkpoint.part("scheduler")),
        prediction=load_prediction_kind(checkpoint.part("scheduler")),
        conditions=conditions,
        blocks=tuple(path for pattern in blocks for path in _numbered(transformer, pattern)),
        conditioning=dict(conditioning or {}),
    )


def _numbered(transformer: nn.Module, pattern: str) -> list[str]:
    """Return the paths that a pattern stands for, one for each module of the list in front of its `*`."""
    modules: Any = transformer.get_submodule(pattern.partition(".*")[0])
    return [pattern.replace("*", str(i)) for i in range(len(modules))]


def digest_parts(
    checkpoint: Checkpoint, trained: bool, encoders: Sequence[str] = (), tokenizers: Sequence[str] = ()
) -> dict[str, str]:
    """Digest the parts; without `trained` the transformer's weights do not count. Raises: WeightsMissing."""
    parts = ("vae", *encoders)
    require_files(*(checkpoint.part(name) for name in parts))
    return {
        "denoiser": digest_denoiser(checkpoint, PART, weights=trained),
        **{name: digest_part(checkpoint.part(name)) for name in parts},
        **{name: digest_files([checkpoint.part(name) / file for file in TOKENIZER_FILES]) for name in tokenizers},
    }
