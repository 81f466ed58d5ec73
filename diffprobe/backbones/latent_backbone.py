"""Base classes of loaded backbones over VAE latents, with and without text encoders, and the loading of their networks.

The text encoders, which differ, are loaded by the family.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, ConditionInput, LoadOptions
from diffprobe.backbones.loading import load_denoiser, require_parts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.text_encoders import PromptCache, TextEncoder
from diffprobe.backbones.vae import VaeEncoder, load_vae_encoder
from diffprobe.core.shapes import FeatureMap, Images

Encoder = TypeVar("Encoder", bound=TextEncoder)
"""Class of the text encoders."""


def load_denoiser_and_vae(
    checkpoint: Checkpoint,
    spec: BackboneSpec,
    needed: Collection[str],
    options: LoadOptions,
    *,
    part: str,
    encoders: Sequence[str] = (),
) -> tuple[nn.Module, VaeEncoder]:
    """Check that all parts have their weights, and load the VAE encoder, and of the denoiser the modules in `needed`.

    Args:
        part: name of the denoiser's part, `unet` or `transformer`.
        encoders: names of the text encoders' parts, which need their weights too.
    Raises: WeightsMissing, naming all parts that lack them; WeightsMismatch; ConfigError, see `load_denoiser`.
    """
    require_parts(checkpoint, part, ("vae", *encoders), trained=options.random_seed is None)
    denoiser = load_denoiser(checkpoint, spec, needed, options, part=part)
    return denoiser, load_vae_encoder(checkpoint.part("vae"), dtype=options.dtype, images=options.images)


class LatentBackbone(Backbone):
    """A denoiser over VAE latents.

    Args:
        denoiser: the network, pruned.
        vae: encodes images.
        prediction: what the denoiser predicts.
    """

    def __init__(self, denoiser: nn.Module, vae: VaeEncoder, *, prediction: PredictionKind) -> None:
        self.denoiser, self._vae, self.prediction = denoiser, vae, prediction

    def encode_images(self, images: Images) -> FeatureMap:
        """See `VaeEncoder`."""
        return self._vae(images)

    def components(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""
        return {"denoiser": self.denoiser, "vae": self._vae.vae}


class TextBackbone(LatentBackbone, Generic[Encoder]):
    """A denoiser over VAE latents that is conditioned on texts.

    Args:
        texts: its text encoders by the names of their parts.
        encode: turns prompts into the condition; only it may hold a reference to the encoders.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        texts: Mapping[str, Encoder],
        encode: Callable[[list[str]], Condition],
        *,
        prediction: PredictionKind,
    ) -> None:
        super().__init__(denoiser, vae, prediction=prediction)
        self.texts, self._prompts = dict(texts), PromptCache(encode)

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """See `PromptCache`."""
        return self._prompts(["" if value is None else str(value) for value in values])

    def components(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""
        return {**super().components(), **{name: text.encoder for name, text in self.texts.items()}}

    def release_text(self) -> None:
        """Free the text encoders."""
        self.texts = {}
        self._prompts.seal()

    def to(self, device: torch.device) -> None:
        """Move all loaded networks, and the cached prompts."""
        super().to(device)
        self._prompts.to(device)
