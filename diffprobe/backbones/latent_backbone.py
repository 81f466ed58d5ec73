"""Base classes of loaded backbones over VAE latents, with and without text encoders."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from diffprobe.backbones.base import Backbone, Condition, ConditionInput
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.text_encoders import PromptCache, TextEncoder
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.core.shapes import FeatureMap, Images

Encoder = TypeVar("Encoder", bound=TextEncoder)
"""Class of the text encoders."""


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
