"""Denoising error with an intervention: the diffusion version of "loss recovered".

Three errors are measured: of the model as it is, with a tap's features replaced by their reconstruction, and with all
of them replaced by one mean feature (mean ablation). `backbones.intervention.Splice` defines replacing for each
pooling; `analysis/loss_recovered.py` turns the errors into records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import DTYPES, ConditionInput, LoadOptions
from diffprobe.backbones.denoiser_runner import rows_per_pass
from diffprobe.backbones.device import choose_device, exact
from diffprobe.backbones.intervention import Splice, replaced
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.plan import ReadPlan
from diffprobe.backbones.pool import pooled_width
from diffprobe.core.errors import ConfigError, NonFinite, UnknownTap, unknown
from diffprobe.core.shapes import FeatureMap, Images
from diffprobe.metrics.fvu import Fvu
from diffprobe.scoring.denoising_error import denoising_error, require_noise
from diffprobe.scoring.noise_sets import stack_noise

Reconstruct = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]]
"""Takes unscaled features, float32 on the backbone's device, and returns their reconstruction."""

Tick = Callable[[int], object]
"""Called with the number of samples that went through the denoiser."""


@dataclass(frozen=True)
class HeldOut:
    """Samples to be denoised.

    Attributes:
        latents: as the backbone's `encode_images` gives them.
        keys: with seed and draw they fix the noise.
        inputs: conditioning input of each sample.
    """

    latents: Float[Tensor, "sample c h w"]
    keys: Sequence[str]
    inputs: Sequence[ConditionInput]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a reconstruction is measured against; errors are float64 [sample, timestep], averaged over draws."""

    timesteps: tuple[int, ...]
    """Timesteps, one per column."""
    untouched: Tensor
    """Error of the model as it is."""
    ablated: Tensor
    """Error with every feature replaced by the mean."""
    cleared: Tensor | None
    """Error with the whole map replaced by the mean, not its pooled part alone; None where the two are the same."""
    means: tuple[Float[Tensor, " d_in"], ...]
    """The mean feature at each timestep, over all places, samples and draws."""


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """What a reconstruction costs."""

    errors: Tensor
    """float64 [sample, timestep], averaged over draws."""
    fvu: tuple[float, ...]
    """Fraction of variance unexplained by the reconstruction of these features, at each timestep."""


class SplicedError:
    """A whole backbone, one tap of which can be replaced.

    The input of the network is that of the features: same latents, same noise (seed, key, draw), same condition and
    precision. The error is that of the model's own target; see `denoising_error`.

    Args:
        plan: backbone, pooling, seed and draws; its timesteps do not matter.
        tap: which of its taps is replaced.
        device: torch device; `auto` takes the accelerator if there is one.
        rows: samples per pass; None bounds them by memory. Errors depend on it by rounding only.
    Raises: UnknownTap; ConfigError for a pooling that cannot be put back, for features that are means over several
        draws (no pass of the network holds one), or for a backbone whose input has no noise.
    """

    def __init__(
        self, plan: ReadPlan, tap: str, *, device: torch.device | str = "auto", rows: int | None = None
    ) -> None:
        self.plan, self.tap, self.device = plan, tap, choose_device(device)
        self.splice = Splice(plan.pool)
        self.target: PredictionKind = plan.spec.prediction
        require_noise(plan.schedule, plan.checkpoint.name)
        if plan.draws > 1 and not plan.keep_draws:
            raise ConfigError(
                f"draws={plan.draws}, averaged: a pass of the network holds the features of one draw, not a mean.",
                fix="train with features.keep_draws=true, or with features.draws=1",
            )
        taps = {info.path: info for info in plan.taps}
        if tap not in taps:
            raise unknown("tap of the plan", tap, taps, UnknownTap)
        self.splice.check_size(tap, taps[tap].size)
        self.d_in = pooled_width(plan.pool, taps[tap].channels)
        self.rows = rows or rows_per_pass(plan.spec.latent_shape)
        options = LoadOptions(dtype=DTYPES[plan.dtype], random_seed=plan.random_seed)
        self._backbone = load_whole(plan.checkpoint, plan.family, plan.spec, options)
        denoiser: Any = self._backbone.denoiser  # the stubs of torch do not know memory_format here
        denoiser.to(memory_format=torch.channels_last)
        self._backbone.to(self.device)

    @torch.no_grad()
    def encode_images(self, images: Images) -> FeatureMap:
        """Return the scaled latents of images in [0, 1], on the CPU."""
        with exact(self.device, self.plan.dtype):
            return self._backbone.encode_images(images.to(self.device)).cpu()

    def baseline(self, samples: HeldOut, timesteps: Sequence[int], tick: Tick = lambda n: None) -> Baseline:
        """Measure the untouched model, then mean ablation; the mean is that of the same samples.

        Raises: BadTimestep, NonFinite.
        """
        self.plan.schedule.check(timesteps, self.plan.checkpoint.name)
        untouched, ablated, cleared, means = [], [], [], []
        for t in timesteps:
            total, count = torch.zeros(self.d_in, dtype=torch.float64, device=self.device), [0]

            def add_up(x: FeatureMap, total: Tensor = total, count: list[int] = count) -> None:
                features = self.splice.read(x)
                total += features.double().sum(0)
                count[0] += len(features)

            untouched.append(self._errors(samples, t, add_up, tick))
            mean = (total / count[0]).float()
            means.append(mean)
            ablated.append(self._errors(samples, t, self._put(mean.expand_as), tick))
            if self.splice.is_pooled:
                cleared.append(self._errors(samples, t, partial(self.splice.fill, mean=mean), tick))
        return Baseline(
            timesteps=tuple(timesteps),
            untouched=torch.stack(untouched, 1),
            ablated=torch.stack(ablated, 1),
            cleared=torch.stack(cleared, 1) if cleared else None,
            means=tuple(means),
        )

    def spliced(
        self, samples: HeldOut, timesteps: Sequence[int], reconstruct: Reconstruct, tick: Tick = lambda n: None
    ) -> Spliced:
        """Measure the model with the tap's features replaced by their reconstruction.

        Raises: BadTimestep; NonFinite; ConfigError if the reconstruction has another shape than the features.
        """
        self.plan.schedule.check(timesteps, self.plan.checkpoint.name)
        errors, fvus = [], []
        for t in timesteps:
            metric = Fvu(self.d_in).to(self.device)

            def through(x: Tensor, metric: Fvu = metric) -> Tensor:
                x_hat = self._reconstruct(reconstruct, x)
                metric.update(x, x_hat)
                return x_hat

            errors.append(self._errors(samples, t, self._put(through), tick))
            fvus.append(float(metric.compute()))
        return Spliced(errors=torch.stack(errors, 1), fvu=tuple(fvus))

    def _reconstruct(self, reconstruct: Reconstruct, x: Tensor) -> Tensor:
        x_hat = reconstruct(x).to(x)
        if x_hat.shape != x.shape:
            raise ConfigError(f"features of shape {tuple(x.shape)} were reconstructed as {tuple(x_hat.shape)}.")
        if not torch.isfinite(x_hat).all():
            raise NonFinite(f"the reconstruction of tap '{self.tap}' holds NaN or infinity.")
        return x_hat

    def _put(self, new: Callable[[Tensor], Tensor]) -> Callable[[FeatureMap], FeatureMap]:
        def change(x: FeatureMap) -> FeatureMap:
            before = self.splice.read(x)
            return self.splice.write(x, before, new(before))

        return change

    @torch.no_grad()
    def _errors(
        self, samples: HeldOut, t: int, change: Callable[[FeatureMap], FeatureMap | None], tick: Tick
    ) -> Float[Tensor, " sample"]:
        """Return each sample's mean squared error at one timestep, float64, averaged over draws."""
        found = torch.zeros(len(samples), dtype=torch.float64)
        spec = self.plan.spec
        with exact(self.device, self.plan.dtype), replaced(self._backbone.denoiser, self.tap, spec.layout, change):
            for rows in torch.arange(len(samples)).split(self.rows):
                for draw in range(self.plan.draws):
                    found[rows] += self._error(samples, rows.tolist(), t, draw) / self.plan.draws
                tick(len(rows))
        if not torch.isfinite(found).all():
            key = samples.keys[int((~torch.isfinite(found)).nonzero()[0])]
            raise NonFinite(f"the denoising error of sample '{key}' at t={t} is not a finite number.")
        return found

    def _error(self, samples: HeldOut, rows: list[int], t: int, draw: int) -> Float[Tensor, " row"]:
        """Return the denoising error of some samples at one timestep and draw, float64 on the CPU."""
        plan, shape = self.plan, self.plan.spec.latent_shape
        clean = samples.latents[rows].to(self.device)
        noise = stack_noise(plan.seed, [samples.keys[row] for row in rows], draw, shape).to(self.device)
        steps = torch.full((len(rows),), t, device=self.device)
        x_t = plan.schedule.add(clean, noise, steps).to(DTYPES[plan.dtype])
        condition = self._backbone.encode_conditions([samples.inputs[row] for row in rows])
        condition = {name: values.to(self.device) for name, values in condition.items()}
        predicted = self._backbone.denoise(x_t.contiguous(memory_format=torch.channels_last), steps, condition)
        return denoising_error(predicted, clean, noise, steps, plan.schedule).cpu()
