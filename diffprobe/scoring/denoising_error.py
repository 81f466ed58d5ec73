"""Denoising error: how far a denoiser's prediction is from its target, per sample.

`denoising_error` is the only implementation; diffusion classifiers, the use of captions, and errors with an
intervention all call it. `DenoisingError` scores (image, condition) pairs with the whole denoiser of any family.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Backbone, BackboneSpec, Condition, ConditionInput, LoadOptions, Prediction
from diffprobe.backbones.denoiser_runner import rows_per_pass
from diffprobe.backbones.device import choose_device, exact
from diffprobe.backbones.families import describe
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.backbones.noise import NoiseSchedule, PredictionKind
from diffprobe.core.errors import ConfigError
from diffprobe.core.shapes import FeatureMap, Images
from diffprobe.scoring.noise_sets import stack_noise

Score = Callable[[Tensor, Sequence[str], Condition, Sequence[int]], Tensor]
"""Takes latents, keys, conditions [batch, candidate, ...] and timesteps; returns errors [batch, candidate, timestep].
Smaller errors mean that the condition fits better. `DenoisingError` is one."""


def denoising_error(
    prediction: Prediction,
    clean: Float[Tensor, "rows channels height width"],
    noise: Float[Tensor, "rows channels height width"],
    timesteps: Int[Tensor, " rows"],
    schedule: NoiseSchedule,
) -> Float[Tensor, " rows"]:
    """Return the squared error of each row's prediction, averaged over its numbers, float64.

    Args:
        prediction: output of the denoiser for `schedule.add(clean, noise, timesteps)`.
        clean: what was noised.
        noise: standard normal noise.
        timesteps: positions on the training grid.
        schedule: forward process of the checkpoint.
    Sources: Ho et al., NeurIPS 2020, equation 14 (epsilon); Salimans and Ho, 2202.00512, appendix D (v, sample); Liu et
        al., 2209.03003, equation 1 (flow).
    """
    target = prediction_target(prediction.kind, clean, noise, timesteps, schedule)
    return (prediction.value.double() - target.double()).square().flatten(1).mean(1)


def prediction_target(
    kind: PredictionKind,
    clean: Float[Tensor, "rows channels height width"],
    noise: Float[Tensor, "rows channels height width"],
    timesteps: Int[Tensor, " rows"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "rows channels height width"]:
    """Return what a perfect denoiser of a kind would predict. Arguments as in `denoising_error`."""
    if kind == "epsilon":
        return noise
    if kind == "v":
        return schedule.add(noise, -clean, timesteps)
    return noise - clean if kind == "flow" else clean


def require_noise(schedule: NoiseSchedule, name: str) -> None:
    """Refuse a backbone `name` whose input has no noise at any timestep. Raises: ConfigError."""
    if not schedule.noise.any():
        raise ConfigError(
            f"backbone '{name}' is given clean images at all timesteps, so it has no denoising error.",
            fix="backbone.clean_input=false, and a backbone other than pixels",
        )


class DenoisingError:
    """Scores (image, condition) pairs by the denoising error of a whole backbone.

    Args:
        backbone: loaded with its whole denoiser.
        spec: description of the backbone.
        seed: seed of the noise; with a sample's key and the timestep it fixes the noise, for every candidate.
        rows: latents per pass of the denoiser; None bounds them by memory. Errors depend on it by rounding only.
    Raises: ConfigError for a backbone whose input has no noise.
    """

    def __init__(self, backbone: Backbone, spec: BackboneSpec, *, seed: int = 0, rows: int | None = None) -> None:
        require_noise(spec.schedule, spec.name)
        self.backbone, self.spec, self.seed = backbone, spec, seed
        self.rows = rows or rows_per_pass(spec.latent_shape)
        self._like = next(backbone.denoiser.parameters())

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        seed: int = 0,
        resolution: int | None = None,
        dtype: str = "float32",
        device: torch.device | str = "auto",
        random_seed: int | None = None,
        rows: int | None = None,
    ) -> Self:
        """Load a checkpoint of any family whole.

        Args:
            path: folder in diffusers format, hub id, or the name of a shipped model.
            seed: seed of the noise.
            resolution: image side in pixels; None takes the checkpoint's own.
            dtype: precision of the forward pass, a key of `base.DTYPES`.
            device: torch device; `auto` takes the accelerator if there is one.
            random_seed: seed of random weights of the denoiser (a control); None reads the trained ones.
            rows: latents per pass of the denoiser; None bounds them by memory.
        Raises: WeightsMissing, WeightsMismatch, ConfigError.
        """
        checkpoint = locate(path)
        family, spec = describe(checkpoint, resolution)
        require_noise(spec.schedule, spec.name)
        backbone = load_whole(checkpoint, family, spec, LoadOptions(dtype=DTYPES[dtype], random_seed=random_seed))
        backbone.to(choose_device(device))
        return cls(backbone, spec, seed=seed, rows=rows)

    @property
    def n_timesteps(self) -> int:
        """Length of the training grid."""
        return self.spec.schedule.n_timesteps

    @torch.no_grad()
    def encode_images(self, images: Images) -> FeatureMap:
        """Return the scaled latents of images in [0, 1], on the CPU."""
        with self.exactly():
            return self.backbone.encode_images(images.to(self._like.device)).cpu()

    @torch.no_grad()
    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Encode captions or classes, one row each. Raises: ConfigError, see `Backbone.encode_conditions`."""
        with self.exactly():
            return self.backbone.encode_conditions(values)

    @torch.no_grad()
    def __call__(
        self,
        latents: Float[Tensor, "batch channels height width"],
        keys: Sequence[str],
        conditions: Condition,
        timesteps: Sequence[int],
    ) -> Float[Tensor, "batch candidate timestep"]:
        """Return the denoising error of each image under each of its candidate conditions, float64 on the CPU.

        All candidates of an image share the noise of a timestep; each timestep has noise of its own.

        Args:
            latents: as `encode_images` returns them.
            keys: keys of the samples.
            conditions: rows of `encode_conditions`, each tensor [batch, candidate, ...]; empty for a backbone without
                conditions.
            timesteps: positions on the training grid.
        Raises: BadTimestep outside of the training grid.
        """
        schedule, device = self.spec.schedule, self._like.device
        schedule.check(timesteps, self.spec.name)
        batch = len(latents)
        candidates = next((values.shape[1] for values in conditions.values()), 1)
        flat = {name: values.flatten(0, 1) for name, values in conditions.items()}
        image = torch.arange(batch).repeat_interleave(candidates)
        errors = torch.empty(batch * candidates, len(timesteps), dtype=torch.float64)
        with self.exactly():
            for column, t in enumerate(timesteps):
                noise = stack_noise(self.seed, keys, t, latents.shape[1:])
                for rows in torch.arange(len(image)).split(self.rows):
                    clean, drawn = (x[image[rows]].to(device) for x in (latents, noise))
                    steps = torch.full((len(rows),), t, device=device)
                    condition = {name: values[rows.to(values.device)].to(device) for name, values in flat.items()}
                    errors[rows, column] = self.row_errors(clean, drawn, steps, condition).cpu()
        return errors.unflatten(0, (batch, candidates))

    def row_errors(
        self,
        clean: Float[Tensor, "rows channels height width"],
        noise: Float[Tensor, "rows channels height width"],
        timesteps: Int[Tensor, " rows"],
        condition: Condition,
    ) -> Float[Tensor, " rows"]:
        """Return the error of each row of one pass, float64; gradients reach the denoiser where they are enabled.

        Args:
            clean: latents, on the device of the denoiser like everything else.
            noise: standard normal noise.
            timesteps: positions on the training grid.
            condition: encoded condition of each row.
        """
        x_t = self.spec.schedule.add(clean, noise, timesteps).to(self._like.dtype)
        predicted = self.backbone.denoise(x_t, timesteps, condition)
        return denoising_error(predicted, clean, noise, timesteps, self.spec.schedule)

    def exactly(self) -> AbstractContextManager[None]:
        """Guard a pass: no autocast, no TF32 under the name of float32."""
        name = next(name for name, dtype in DTYPES.items() if dtype == self._like.dtype)
        return exact(self._like.device, name)
