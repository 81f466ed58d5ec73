"""The diffusion version of "loss recovered": how much worse a model denoises with a reconstruction in place of a tap.

Three errors stand beside each other: of the model as it is, with a tap's features replaced by their reconstruction, and
with all of them replaced by one mean feature (mean ablation). `Splice` says what replacing means for each pooling. Next
in the flow: `spliced_records.py` makes numbers of the errors.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import DTYPES, ConditionInput, LoadOptions
from diffprobe.backbones.device import choose_device, exact
from diffprobe.backbones.intervention import Splice, replaced
from diffprobe.backbones.plan import ReadPlan
from diffprobe.backbones.pool import pooled_width
from diffprobe.core.errors import ConfigError, NonFinite, UnknownTap, WeightsMismatch, unknown
from diffprobe.core.rng import noise_for
from diffprobe.core.shapes import FeatureMap, Images
from diffprobe.metrics.fvu import Fvu

Reconstruct = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]]
"""Takes features in their own unit, float32 on the backbone's device, and returns their reconstruction."""

Tick = Callable[[int], object]
"""Is told how many samples went through the denoiser."""

_PLACES, _ROWS = 2**16, 256
"""Latent places and rows of a pass at most; errors do not depend on it beyond rounding."""


@dataclass(frozen=True)
class HeldOut:
    """Samples to be denoised.

    Attributes:
        latents: as the backbone's `encode_images` gives them.
        keys: with seed and draw they fix the noise.
        told: what the backbone is told of each.
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
    """Timesteps, one a column."""
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
    """What a reconstruction does."""

    errors: Tensor
    """float64 [sample, timestep], averaged over draws."""
    fvu: tuple[float, ...]
    """Fraction of variance unexplained by the reconstruction of these features, at each timestep."""


class SplicedError:
    """A whole Stable Diffusion U-Net, one tap of which can be replaced.

    The input of the network is that of the features: same latents, same noise (seed, key, draw), same condition and
    precision. The error is that of the model's own target, epsilon or v.

    Args:
        plan: backbone, pooling, seed and draws; its timesteps do not matter.
        tap: which of its taps is replaced.
        device: torch device; `auto` takes the accelerator if there is one.
        rows: samples a pass; None bounds them by memory.
    Raises: UnknownTap; WeightsMismatch for another pipeline, or a target that is not known; ConfigError for a pooling
        that cannot be put back, features that are means over several draws (no pass of the network holds one), or a
        backbone that is given clean images and so denoises nothing.
    """

    def __init__(
        self, plan: ReadPlan, tap: str, *, device: torch.device | str = "auto", rows: int | None = None
    ) -> None:
        self.plan, self.tap, self.device = plan, tap, choose_device(device)
        self.splice = Splice(plan.pool)
        self.target = _target(plan)
        if plan.schedule is not plan.spec.schedule:
            raise ConfigError("clean_input=true: a backbone that sees clean images has no denoising error.")
        if plan.draws > 1 and not plan.keep_draws:
            raise ConfigError(
                f"draws={plan.draws}, averaged: what was learned from means over draws never saw the features of one"
                " draw, which are all that a pass of the network has to be replaced.",
                fix="train with features.keep_draws=true, or with features.draws=1",
            )
        taps = {info.path: info for info in plan.taps}
        if tap not in taps:
            raise unknown("tap of the plan", tap, taps, UnknownTap)
        self.splice.check_size(tap, taps[tap].size)
        self.d_in = pooled_width(plan.pool, taps[tap].channels)
        _, height, width = plan.spec.latent_shape
        self.rows = rows or max(1, min(_ROWS, _PLACES // (height * width)))
        options = LoadOptions(dtype=DTYPES[plan.dtype], random_seed=plan.random_seed)
        whole = frozenset(path for path, _ in plan.spec.denoiser.named_modules())
        self._backbone = plan.family.load(plan.checkpoint, plan.spec, whole, options)
        denoiser: Any = self._backbone.denoiser  # the stubs of torch do not know memory_format here
        denoiser.to(memory_format=torch.channels_last)
        self._backbone.to(self.device)

    @torch.no_grad()
    def encode_images(self, images: Images) -> FeatureMap:
        """Return the scaled latents of images in [0, 1], on the CPU."""
        with exact(self.device, self.plan.dtype):
            return self._backbone.encode_images(images.to(self.device)).cpu()

    def baseline(self, samples: HeldOut, timesteps: Sequence[int], tick: Tick = lambda n: None) -> Baseline:
        """Measure the untouched model, then mean ablation; the mean is that of these very samples.

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
                    found[rows] += self._denoise(samples, rows.tolist(), t, draw) / self.plan.draws
                tick(len(rows))
        if not torch.isfinite(found).all():
            key = samples.keys[int((~torch.isfinite(found)).nonzero()[0])]
            raise NonFinite(f"the denoising error of sample '{key}' at t={t} is no finite number.")
        return found

    def _denoise(self, samples: HeldOut, rows: list[int], t: int, draw: int) -> Float[Tensor, " row"]:
        clean = samples.latents[rows].to(self.device)
        noise = torch.stack(
            [noise_for(self.plan.seed, samples.keys[row], draw, tuple(clean.shape[1:])) for row in rows]
        )
        noise = noise.to(self.device)
        steps = torch.full((len(rows),), t, device=self.device)
        schedule = self.plan.schedule
        target = noise
        if self.target == "v_prediction":  # v is the noised latent, a quarter of a turn further on
            target = schedule.add(noise, -clean, steps)
        x_t = schedule.add(clean, noise, steps).to(DTYPES[self.plan.dtype])
        condition = self._backbone.encode_conditions([samples.inputs[row] for row in rows])
        condition = {name: values.to(self.device) for name, values in condition.items()}
        seen: list[Tensor] = []
        # `denoise` gives nothing back, since features are read by hooks; so is the prediction.
        handle = self._backbone.denoiser.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            self._backbone.denoise(x_t.contiguous(memory_format=torch.channels_last), steps, condition)
        finally:
            handle.remove()
        return (seen[0].double() - target.double()).square().flatten(1).mean(1).cpu()


def _target(plan: ReadPlan) -> str:
    """Return what the model predicts, by its scheduler config. Raises: WeightsMismatch."""
    checkpoint = plan.checkpoint
    if checkpoint.index.get("_class_name") != "StableDiffusionPipeline":
        raise WeightsMismatch(
            f"'{checkpoint.name}' is a {checkpoint.index.get('_class_name')}, not a StableDiffusionPipeline.",
            "the denoising error with replaced features is measured for these only",
        )
    path = checkpoint.part("scheduler") / "scheduler_config.json"
    target = json.loads(path.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
    if target not in ("epsilon", "v_prediction"):
        raise WeightsMismatch(
            f"'{checkpoint.name}' predicts '{target}'; its error is not known.", "allowed: epsilon, v_prediction"
        )
    return str(target)
