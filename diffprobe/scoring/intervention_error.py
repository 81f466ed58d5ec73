"""Denoising error with an autoencoder in the network: the diffusion version of "loss recovered".

Three errors are measured: of the model as it is, with a tap's features replaced by their reconstruction, and with all
of them replaced by one mean feature of training samples (mean ablation). `backbones.intervention.Splice` defines
replacing for each pooling; `analysis/loss_recovered.py` turns the errors into records.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.intervention import Splice
from diffprobe.backbones.plan import ReadPlan
from diffprobe.backbones.pool import pooled_width
from diffprobe.core.errors import ConfigError, NonFinite, UnknownTap, unknown
from diffprobe.metrics.fvu import Fvu
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork, Tick, no_tick, put_features

Reconstruct = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]]
"""Takes unscaled features, float32 on the backbone's device, and returns their reconstruction."""


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
    """The mean feature at each timestep, over all places and draws of the training samples."""
    n_train: int
    """Number of training samples."""


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """What a reconstruction costs."""

    errors: Tensor
    """float64 [sample, timestep], averaged over draws."""
    fvu: tuple[float, ...]
    """Fraction of variance unexplained by the reconstruction of these features, at each timestep."""


def join_spliced(parts: Iterable[Spliced]) -> Spliced:
    """Return the measurements of several timesteps as one."""
    found = list(parts)
    errors = torch.cat([part.errors for part in found], 1)
    return Spliced(errors=errors, fvu=tuple(fvu for part in found for fvu in part.fvu))


class SplicedError(InterventionNetwork):
    """A whole backbone, one tap of which can be replaced by a reconstruction.

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
        self.tap, self.splice = tap, Splice(plan.pool)
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
        super().__init__(plan, device=device, rows=rows)

    def baseline(self, samples: HeldOut, train: HeldOut, timesteps: Sequence[int], tick: Tick = no_tick) -> Baseline:
        """Measure the untouched model, then mean ablation.

        Args:
            samples: samples that are denoised.
            train: training samples, of which the mean is taken: a mean of the samples themselves would know them.
            timesteps: positions on the training grid.
        Raises: BadTimestep, NonFinite.
        """
        self.plan.schedule.check(timesteps, self.plan.checkpoint.name)
        untouched, ablated, cleared, means = [], [], [], []
        for t in timesteps:
            untouched.append(self.errors(samples, t, tick=tick))
            mean = self.means(train, t, {self.tap: self.splice}, tick)[self.tap]
            means.append(mean)
            ablated.append(self.errors(samples, t, {self.tap: put_features(self.splice, mean.expand_as)}, tick))
            if self.splice.is_pooled:
                cleared.append(self.errors(samples, t, {self.tap: partial(self.splice.fill, mean=mean)}, tick))
        return Baseline(
            timesteps=tuple(timesteps),
            untouched=torch.stack(untouched, 1),
            ablated=torch.stack(ablated, 1),
            cleared=torch.stack(cleared, 1) if cleared else None,
            means=tuple(means),
            n_train=len(train),
        )

    def spliced(
        self, samples: HeldOut, timesteps: Sequence[int], reconstruct: Reconstruct, tick: Tick = no_tick
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

            errors.append(self.errors(samples, t, {self.tap: put_features(self.splice, through)}, tick))
            fvus.append(float(metric.compute()))
        return Spliced(errors=torch.stack(errors, 1), fvu=tuple(fvus))

    def _reconstruct(self, reconstruct: Reconstruct, x: Tensor) -> Tensor:
        x_hat = reconstruct(x).to(x)
        if x_hat.shape != x.shape:
            raise ConfigError(f"features of shape {tuple(x.shape)} were reconstructed as {tuple(x_hat.shape)}.")
        if not torch.isfinite(x_hat).all():
            raise NonFinite(f"the reconstruction of tap '{self.tap}' holds NaN or infinity.")
        return x_hat
