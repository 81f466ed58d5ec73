"""Weights of timesteps in a score: the loss that errors of a denoiser are converted to, and the average of timesteps.

The error of a prediction of one kind is that of another kind times a number that depends on the timestep alone, because
the noisy latent is known. So a loss is a choice of weights, and needs no further pass of the denoiser.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.noise import NoiseSchedule, PredictionKind
from diffprobe.core.errors import BadTimestep, ConfigError, NonFinite, TooFewGroups

Loss = Literal["native", "noise", "sample"]
"""Loss that errors are expressed in: that of what the denoiser predicts, of the noise, or of the clean sample."""
_RATE = 7.0
_ROUNDING = 1e-9
"""Margins below this part of an error are rounding."""


def loss_factors(
    kind: PredictionKind, loss: Loss, timesteps: Sequence[int], schedule: NoiseSchedule
) -> Float[Tensor, " timestep"]:
    """Return the factor by which an error of a predicted kind becomes an error of a loss, float64.

    With x_t = s x + n e (s, n: `signal`, `noise`), an exact x_t turns a prediction into another one linearly:

    - flow (s = 1 - n, velocity u = e - x): e = x_t + s u, so the noise error is s^2 times the velocity error;
    - v (s^2 + n^2 = 1, v = s e - n x): e = n x_t + s v, so the factor is s^2 as well;
    - sample: e = (x_t - s x) / n, so the factor is s^2 / n^2; epsilon: 1.

    The error of the clean sample is n^2 / s^2 times that of the noise.

    Raises: BadTimestep for a timestep at which the conversion divides by zero.

    >>> from diffprobe.backbones.noise import flow_schedule
    >>> loss_factors("flow", "noise", [250], flow_schedule(1000)).tolist()
    [0.5625]
    """
    if loss == "native":
        return torch.ones(len(timesteps), dtype=torch.float64)
    at = torch.tensor(list(timesteps), dtype=torch.long)
    signal, noise = schedule.signal[at].double().square(), schedule.noise[at].double().square()
    one = torch.ones_like(signal)
    if loss == "noise":
        factors = {"epsilon": one, "v": signal, "flow": signal, "sample": signal / noise}[kind]
    else:
        factors = {"epsilon": noise / signal, "v": noise, "flow": noise, "sample": one}[kind]
    if not bool(factors.isfinite().all()):
        bad = [t for t, factor in zip(timesteps, factors.tolist(), strict=True) if not factor < float("inf")]
        raise BadTimestep(
            f"the error of a prediction of kind '{kind}' has no {loss} loss at {', '.join(f't={t}' for t in bad)}: "
            "there is no noise or no signal.",
            fix="loss=native, or other timesteps",
        )
    return factors


def exponential_weights(timesteps: Sequence[int], n_timesteps: int) -> Float[Tensor, " timestep"]:
    """Return exp(-7 t) with t in [0, 1] from clean to noise, float64: weights of the error of the clean sample.

    Source: Clark and Jaini, 2303.15233, section 3 (choice of weighting function; equation 2 has the loss).

    >>> [round(weight, 3) for weight in exponential_weights([0, 500], 1000).tolist()]
    [1.0, 0.03]
    """
    t = torch.tensor(list(timesteps), dtype=torch.float64) / n_timesteps
    return (-_RATE * t).exp()


def learned_weights(
    errors: Float[Tensor, "sample candidate timestep"], right: Int[Tensor, " sample"], groups: Sequence[str]
) -> Float[Tensor, " timestep"]:
    """Return the weight of each timestep: mean over variance of the margin of the right candidate, at least 0, float64.

    The margin is the error averaged over the wrong candidates minus that of the right one. It is averaged within groups
    first, so that a group counts once. The weights are those of a linear discriminant with independent timesteps
    (Fisher 1936): mean and variance are taken over groups. They sum to 1. A closed form: nothing is drawn, and the
    order of samples and candidates has no effect beyond rounding. Clark and Jaini (2303.15233, section 3) fit a
    logistic regression instead.

    Args:
        errors: finite, all candidates at all timesteps. NaN marks a place without a candidate.
        right: column of the right candidate of each sample.
        groups: independent units.
    Raises: TooFewGroups with fewer than 3; NonFinite without an error of the right candidate; ConfigError if the right
        candidate has the smaller error at no timestep.
    """
    names = sorted(set(groups))
    if len(names) < 3:
        raise TooFewGroups(
            f"weights of timesteps are learned on the spread over groups; {len(names)} are too few.",
            fix="weights.fraction larger, or weights.kind=uniform",
        )
    own = errors.gather(1, right[:, None, None].expand(-1, 1, errors.shape[2])).squeeze(1).double()
    if not bool(own.isfinite().all()):
        raise NonFinite("a right candidate has no finite error at some timestep; no weights can be learned.")
    others = errors.double().clone()
    others.scatter_(1, right[:, None, None].expand(-1, 1, errors.shape[2]), torch.nan)
    margins = others.nanmean(1) - own
    place = {name: number for number, name in enumerate(names)}
    of_group = torch.tensor([place[group] for group in groups])
    sums = torch.zeros(len(names), errors.shape[2], dtype=torch.float64).index_add_(0, of_group, margins)
    means = sums / torch.bincount(of_group, minlength=len(names))[:, None]
    average, variance = means.mean(0), means.var(0)
    average = average.where(average > _ROUNDING * own.abs().mean(0), 0.0)
    floor = variance.max() * 1e-6  # a timestep at which nothing varies gets no infinite weight
    weights = (average / variance.clamp_min(float(floor)).clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0)
    if not bool((weights > 0).any()):
        raise ConfigError(
            "weights.kind=learned: the right candidate has the smaller error at no timestep.",
            fix="weights.kind=uniform, or a model that uses its condition",
        )
    return weights / weights.sum()
