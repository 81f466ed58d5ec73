"""Images that a model generates from given conditions, with a deterministic sampler (DDIM; for flows Euler)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffprobe.backbones.base import Condition
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.shapes import FeatureMap, Images
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import stack_noise
from diffprobe.scoring.sampling import denoised, sampling_timesteps


class Decoder(Protocol):
    """Decodes scaled latents to images in [0, 1]."""

    def __call__(self, latents: FeatureMap) -> Images:
        """Decode."""


@torch.no_grad()
def generated_latents(
    model: DenoisingError, keys: Sequence[str], conditions: Condition, *, steps: int, guidance: float, seed: int
) -> FeatureMap:
    """Sample a latent for each condition, on the CPU.

    Args:
        model: the model; its rows per pass bound the batch, which has no effect beyond rounding.
        keys: with `seed`, they fix the noise that a sample starts from.
        conditions: encoded, one row per sample.
        steps: sampling steps, evenly spaced, the noisiest first (`sampling_timesteps`).
        guidance: scale of classifier-free guidance against the empty condition; 1 is none.
        seed: seed of the noise.
    Raises: NonFinite with the key; ConfigError for more steps than timesteps, or guidance of a model without an empty
        condition.
    """
    spec, backbone, like = model.spec, model.backbone, next(model.backbone.denoiser.parameters())
    timesteps = sampling_timesteps(steps, spec.schedule.n_timesteps)
    empty: Condition = {}
    if guidance != 1:
        if "empty" not in spec.conditions:
            raise ConfigError(
                f"backbone '{spec.name}' has no empty condition, which guidance={guidance:g} needs.",
                fix="generated.guidance=1",
            )
        empty = model.encode_conditions(["" if "caption" in spec.conditions else None])
    latents = stack_noise(seed, [f"generated:{key}" for key in keys], 0, spec.latent_shape)
    finished = []
    for rows in torch.arange(len(keys)).split(model.rows):
        x = latents[rows].to(like.device)
        given = {name: values[rows.to(values.device)].to(like.device) for name, values in conditions.items()}
        without = {name: x0.to(like.device).expand(len(rows), *x0.shape[1:]) for name, x0 in empty.items()}

        def predicted(x: Tensor, t: int, condition: Condition) -> Tensor:
            steps = torch.full((len(x),), t, device=x.device)
            return backbone.denoise(x.to(like.dtype), steps, condition).value.float()

        with model.exactly():
            for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
                output = predicted(x, t, given)
                if guidance != 1:
                    base = predicted(x, t, without)
                    output = base + guidance * (output - base)
                x, noise = denoised(spec.prediction, output, x, t, spec.schedule)
                if after is not None:
                    x = float(spec.schedule.signal[after]) * x + float(spec.schedule.noise[after]) * noise
        finished.append(x.cpu())
    found = torch.cat(finished)
    finite = found.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFinite(f"the latents generated for sample '{keys[int((~finite).nonzero()[0])]}' are not finite.")
    return found


def read_again(model: DenoisingError, decode: Decoder, latents: FeatureMap) -> FeatureMap:
    """Return the latents of the images that latents decode to: rounded to 8 bits, and encoded as real images are.

    A generated image is then scored as a real one of the same pixels would be.
    """
    parts = []
    for rows in latents.split(16):
        images = (decode(rows) * 255).round().clamp(0, 255) / 255
        parts.append(model.encode_images(images.float().cpu()))
    return torch.cat(parts)
