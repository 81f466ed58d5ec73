"""A whole backbone whose taps can be replaced while it denoises; the error is that of the model's own target.

The input of the network is that of the features: same latents, same noise (seed, key, draw), same condition and
precision. `intervention_error.py` puts reconstructions of an autoencoder in; `tap_interventions.py` ablates, patches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import DTYPES, ConditionInput, LoadOptions, Prediction
from diffprobe.backbones.denoiser_runner import rows_per_pass
from diffprobe.backbones.device import choose_device, exact, set_memory_format
from diffprobe.backbones.intervention import Splice, replaced
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.plan import ReadPlan
from diffprobe.core.errors import ConfigError, NonFinite, RunFailed
from diffprobe.core.shapes import FeatureMap, Images
from diffprobe.scoring.denoising_error import denoising_error, require_noise
from diffprobe.scoring.edits.text import EditedText, encode_texts
from diffprobe.scoring.noise_sets import stack_noise

Change = Callable[[FeatureMap], FeatureMap | None]
"""Takes the map of a tap and returns the one that replaces it, or None to leave it."""

Tick = Callable[[int], object]
"""Called with the number of samples that went through the denoiser."""


def no_tick(n: int) -> None:
    """Count nothing."""


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


class InterventionNetwork:
    """A whole backbone whose taps can be replaced.

    Args:
        plan: backbone, taps, seed and draws; its timesteps do not matter.
        device: torch device; `auto` takes the accelerator if there is one.
        rows: samples per pass; None bounds them by memory. Errors depend on it by rounding only.

    Attributes:
        target: what the model predicts.

    Raises: ConfigError for a backbone whose input has no noise, and for features whose massive channels are treated.
    """

    def __init__(self, plan: ReadPlan, *, device: torch.device | str = "auto", rows: int | None = None) -> None:
        self.plan, self.device = plan, choose_device(device)
        if plan.features.massive.active:
            raise ConfigError(
                f"features.massive.treatment={plan.features.massive.treatment}: an intervention replaces the network's "
                "own maps, whose massive channels are as they are.",
                fix="a run without features.massive",
            )
        self.target: PredictionKind = plan.spec.prediction
        require_noise(plan.schedule, plan.checkpoint.name)
        self.rows = rows or rows_per_pass(plan.spec.latent_shape)
        offload = plan.backbone.offload == "blocks"
        options = LoadOptions(
            dtype=DTYPES[plan.dtype], random_seed=plan.random_seed, offload_blocks=offload,
            quantize=plan.backbone.quantize,
        )  # fmt: skip
        self._backbone = load_whole(plan.checkpoint, plan.family, plan.spec, options)
        set_memory_format(self._backbone.denoiser, torch.channels_last)
        self._backbone.to(self.device)

    @torch.no_grad()
    def encode_images(self, images: Images) -> FeatureMap:
        """Return the scaled latents of images in [0, 1], on the CPU."""
        with exact(self.device, self.plan.dtype):
            return self._backbone.encode_images(images.to(self.device)).cpu()

    def means(
        self, samples: HeldOut, t: int, splices: Mapping[str, Splice], tick: Tick = no_tick
    ) -> dict[str, Float[Tensor, " d_in"]]:
        """Return the mean feature of each tap at one timestep, over all samples, draws and (unpooled) places.

        Args:
            splices: tap -> the way from its map to features.
        Returns: float32, on the network's device.
        Raises: BadTimestep, NonFinite; ConfigError for a tap that cannot be replaced.
        """
        totals: dict[str, Tensor] = {}
        counts = dict.fromkeys(splices, 0)

        def reader(tap: str, splice: Splice) -> Change:
            def add_up(x: FeatureMap) -> None:
                features = splice.read(x)
                totals[tap] = totals.get(tap, 0) + features.double().sum(0)
                counts[tap] += len(features)

            return add_up

        self.errors(samples, t, {tap: reader(tap, splice) for tap, splice in splices.items()}, tick)
        return {tap: (total / counts[tap]).float() for tap, total in totals.items()}

    @torch.no_grad()
    def errors(
        self, samples: HeldOut, t: int, changes: Mapping[str, Change] | None = None, tick: Tick = no_tick
    ) -> Float[Tensor, " sample"]:
        """Return each sample's mean squared error at one timestep, float64 on the CPU, averaged over draws.

        Args:
            changes: tap -> what replaces its map in every pass.
        Raises: BadTimestep, NonFinite; ConfigError for a tap that cannot be replaced.
        """
        found = torch.zeros(len(samples), dtype=torch.float64)
        with ExitStack() as stack:
            self._enter(stack, changes or {})
            for rows, draw in self._passes(samples, t, tick):
                found[rows] += self._error(samples, rows, t, draw) / self.plan.draws
        return self._finite(found, samples, t)

    @torch.no_grad()
    def errors_of(
        self,
        samples: HeldOut,
        rows: Sequence[int],
        t: int,
        draw: int,
        changes: Mapping[str, Change] | None = None,
    ) -> Float[Tensor, " row"]:
        """Return the error of some samples at one timestep and draw in one pass, float64 on the CPU.

        Args:
            rows: positions of the samples, at most `self.rows` of them; a sample may occur more than once, so that
                `changes` can replace its map in several ways.
            draw: number of the noise.
            changes: tap -> what replaces its map.
        Raises: BadTimestep, NonFinite; ConfigError for a tap that cannot be replaced.
        """
        self.plan.schedule.check([t], self.plan.checkpoint.name)
        with ExitStack() as stack:
            self._enter(stack, changes or {})
            errors = self._error(samples, list(rows), t, draw)
        return self._finite(errors, samples, t, rows)

    def loss(
        self, samples: HeldOut, rows: Sequence[int], t: int, draw: int, changes: Mapping[str, Change]
    ) -> Float[Tensor, ""]:
        """Return the mean error of some samples at one timestep and draw, with its gradient to what `changes` add.

        The gradient flows through the frozen network, which keeps none of its own.

        Args:
            rows: positions of the samples, at most `self.rows` of them.
            draw: number of the noise.
            changes: tap -> what replaces its map.
        Raises: BadTimestep, NonFinite; ConfigError for a tap that cannot be replaced.
        """
        self.plan.schedule.check([t], self.plan.checkpoint.name)
        with ExitStack() as stack:
            self._enter(stack, changes)
            errors = self._error(samples, list(rows), t, draw)
        self._finite(errors.detach(), samples, t, rows)
        return errors.mean()

    @torch.no_grad()
    def patched_errors(
        self, samples: HeldOut, donors: Sequence[int], t: int, tap: str, tick: Tick = no_tick
    ) -> Float[Tensor, " sample"]:
        """Return the errors as `errors`, with the map of a tap replaced by that of another sample.

        The donor is denoised with its own noise (of the same timestep and draw) and its own condition.

        Args:
            donors: position of the donor of each sample.
        Raises: as `errors`.
        """
        found = torch.zeros(len(samples), dtype=torch.float64)
        for rows, draw in self._passes(samples, t, tick):
            kept: list[FeatureMap] = []
            with ExitStack() as stack:
                self._enter(stack, {tap: keep_in(kept)})
                self._predict(samples, [donors[row] for row in rows], t, draw)
            with ExitStack() as stack:
                self._enter(stack, {tap: put_from(kept, tap)})
                found[rows] += self._error(samples, rows, t, draw) / self.plan.draws
        return self._finite(found, samples, t)

    def _enter(self, stack: ExitStack, changes: Mapping[str, Change]) -> None:
        stack.enter_context(exact(self.device, self.plan.dtype))
        for tap, change in changes.items():
            stack.enter_context(replaced(self._backbone.denoiser, tap, self.plan.spec.layout, change))

    def _passes(self, samples: HeldOut, t: int, tick: Tick) -> Iterator[tuple[list[int], int]]:
        """Yield the samples and the draw of each pass. Raises: BadTimestep."""
        self.plan.schedule.check([t], self.plan.checkpoint.name)
        for rows in torch.arange(len(samples)).split(self.rows):
            for draw in range(self.plan.draws):
                yield rows.tolist(), draw
            tick(len(rows))

    def _finite(self, found: Tensor, samples: HeldOut, t: int, rows: Sequence[int] | None = None) -> Tensor:
        if not torch.isfinite(found).all():
            row = int((~torch.isfinite(found)).nonzero()[0])
            key = samples.keys[row if rows is None else rows[row]]
            raise NonFinite(f"the denoising error of sample '{key}' at t={t} is not a finite number.")
        return found

    @torch.no_grad()
    def predict(
        self,
        x_t: Float[Tensor, "rows c h w"],
        t: int,
        inputs: Sequence[ConditionInput | EditedText],
        changes: Mapping[str, Change] | None = None,
    ) -> Float[Tensor, "rows c h w"]:
        """Return what the model predicts for noisy latents at one timestep, float32 on the network's device.

        Args:
            x_t: noisy latents, at most `rows` of them, so that they fit into memory.
            inputs: conditioning input of each row; of a text also with its embedding edited.
            changes: tap -> what replaces its map.
        Raises: ConfigError for a tap that cannot be replaced.
        """
        with ExitStack() as stack:
            self._enter(stack, changes or {})
            return self._forward(x_t, t, inputs).value.float()

    def _forward(self, x_t: Tensor, t: int, inputs: Sequence[ConditionInput | EditedText]) -> Prediction:
        steps = torch.full((len(x_t),), t, device=self.device)
        condition = encode_texts(self._backbone.encode_conditions, list(inputs))
        condition = {name: values.to(self.device) for name, values in condition.items()}
        x_t = x_t.to(self.device, DTYPES[self.plan.dtype]).contiguous(memory_format=torch.channels_last)
        return self._backbone.denoise(x_t, steps, condition)

    def _predict(self, samples: HeldOut, rows: list[int], t: int, draw: int) -> tuple[Prediction, Tensor, Tensor]:
        """Return the prediction for some samples, their clean latents and noise."""
        plan, shape = self.plan, self.plan.spec.latent_shape
        clean = samples.latents[rows].to(self.device)
        noise = stack_noise(plan.seed, [samples.keys[row] for row in rows], draw, shape).to(self.device)
        x_t = plan.schedule.add(clean, noise, torch.full((len(rows),), t, device=self.device))
        return self._forward(x_t, t, [samples.inputs[row] for row in rows]), clean, noise

    def _error(self, samples: HeldOut, rows: list[int], t: int, draw: int) -> Float[Tensor, " row"]:
        """Return the denoising error of some samples at one timestep and draw, float64 on the CPU."""
        predicted, clean, noise = self._predict(samples, rows, t, draw)
        steps = torch.full((len(rows),), t, device=self.device)
        return denoising_error(predicted, clean, noise, steps, self.plan.schedule).cpu()


def keep_in(kept: list[FeatureMap]) -> Change:
    """Return a change that leaves the map, and appends a copy of it to a list."""

    def keep(x: FeatureMap) -> None:
        kept.append(x.clone())

    return keep


def put_from(kept: Sequence[FeatureMap], tap: str) -> Change:
    """Return a change that replaces a map by the only one of a list. Raises: RunFailed for any other number of maps."""
    if len(kept) != 1:
        raise RunFailed(f"tap '{tap}' ran {len(kept)} times in one pass: its map cannot be patched.")
    return lambda x: torch.empty_like(x).copy_(kept[0])


def put_features(splice: Splice, new: Callable[[Tensor], Tensor]) -> Change:
    """Return a change that replaces the features of a map by `new` of them."""

    def change(x: Tensor) -> Tensor:
        before = splice.read(x)
        return splice.write(x, before, new(before))

    return change


def require_replaceable(plan: ReadPlan) -> None:
    """Refuse taps of a plan that hold no map of image places: attention weights and texts. Raises: ConfigError."""
    forms = {"attention": "attention weights, computed beside the network", "text": "text tokens"}
    bad = [(tap.path, forms[tap.form]) for tap in plan.taps if tap.form in forms]
    if bad:
        raise ConfigError(
            f"{len(bad)} of {len(plan.taps)} taps cannot be replaced in the network.",
            *(f"{path}: {form}" for path, form in bad),
            fix=f"leave them out of features.taps; or replace the module's output: {bad[0][0].partition('/')[0]}",
        )
