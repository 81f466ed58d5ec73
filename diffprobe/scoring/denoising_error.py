"""How well a text-to-image model denoises an image under a caption. Owns the per-sample error and its fixed noise.

The base of every score probe: the loss over the schedule, and the choice among captions (`caption_choice.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import BadTimestep, WeightsMismatch
from diffprobe.core.rng import noise_for

ROWS_A_PASS = 640
"""LatentGrid that go through the denoiser at once; errors do not depend on it beyond rounding."""


@dataclass
class DenoisingError:
    """Scores (image, caption) pairs by the error of the predicted noise.

    Attributes:
        pipeline: a diffusers StableDiffusionPipeline that predicts epsilon, in float32.
        seed: seed of the noise; with a sample's key and the timestep it fixes the noise, for every candidate caption.
    Raises: WeightsMismatch for a model that predicts something else.
    """

    pipeline: Any
    seed: int = 0

    def __post_init__(self) -> None:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        if scheduler.config.prediction_type != "epsilon":
            raise WeightsMismatch(
                f"the model predicts '{scheduler.config.prediction_type}'; only models that predict epsilon are scored."
            )
        self._alphas = scheduler.alphas_cumprod.float()

    @property
    def n_timesteps(self) -> int:
        """Length of the training grid."""
        return len(self._alphas)

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch c h w"]:
        """Return the scaled vae_latents (modes) of images in [0, 1]."""
        vae = self.pipeline.vae
        return vae.encode(images * 2 - 1).latent_dist.mode() * vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "caption token width"]:
        """Return the text encoder's states, padded to the tokenizer's longest caption."""
        return self._states(captions)[0]

    @torch.no_grad()
    def encode_pooled(self, captions: Sequence[str]) -> Float[Tensor, "caption width"]:
        """Return the text encoder's states, averaged over the tokens of each caption, the start left out."""
        states, mask = self._states(captions)
        mask = mask.clone()
        mask[:, 0] = 0
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def _states(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        parts = [self.pipeline.text_encoder(part).last_hidden_state for part in tokens.input_ids.split(ROWS_A_PASS)]
        return torch.cat(parts), tokens.attention_mask

    @torch.no_grad()
    def __call__(
        self,
        latents: Float[Tensor, "batch c h w"],
        keys: Sequence[str],
        text: Float[Tensor, "batch candidate token width"],
        timesteps: Sequence[int],
    ) -> Float[Tensor, "batch candidate timestep"]:
        """Return the mean squared error of the predicted noise.

        All candidates of an image see the same noise at a timestep; timesteps of an image have noise of their own.

        Raises: BadTimestep outside of the training grid.
        """
        outside = [t for t in timesteps if not 0 <= t < len(self._alphas)]
        if outside:
            raise BadTimestep(f"t={outside[0]} is outside 0..{len(self._alphas) - 1}.")
        batch, candidates = text.shape[:2]
        found = torch.empty(batch, candidates, len(timesteps))
        for column, t in enumerate(timesteps):
            noise = torch.stack([noise_for(self.seed, key, t, tuple(latents.shape[1:])) for key in keys])
            noised = self._alphas[t].sqrt() * latents + (1 - self._alphas[t]).sqrt() * noise
            owners = torch.arange(batch).repeat_interleave(candidates)
            for rows in torch.arange(batch * candidates).split(ROWS_A_PASS):
                owner = owners[rows]
                predicted = self.pipeline.unet(noised[owner], t, text.flatten(0, 1)[rows]).sample
                errors = (predicted - noise[owner]).square().flatten(1).mean(1)
                found[owner, rows % candidates, column] = errors
        return found


def tenths(n_timesteps: int) -> list[int]:
    """Return the middle timestep of each tenth of the schedule.

    >>> tenths(1000)
    [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    """
    return [int(n_timesteps * (2 * part + 1) / 20) for part in range(10)]
