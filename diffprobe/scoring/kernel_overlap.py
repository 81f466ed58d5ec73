"""Overlap of the reverse kernels of a conditional model under different conditions (DiffROP's overlap, 2402.10821).

A reverse kernel p(x_{t-1} | x_t, c) is Gaussian; its mean depends on the condition, its variance does not (Ho et al.,
NeurIPS 2020, section 3.2, sigma_t^2 = beta_t). For two conditions with means m_i and m_j:

- d = |m_i - m_j| / sigma_t, the distance of the means in standard deviations;
- the overlap, the integral of the smaller density, is 2 Phi(-d / 2), 1 for equal kernels (Inman and Bradley 1989);
- the Kullback-Leibler divergence is d^2 / 2, for epsilon models beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)) times the
  squared distance of the predicted noises.

The mean is that of the posterior q(x_{t-1} | x_t, x_0) at the predicted x_0 (equation 7), so that predictions of any
kind are converted to x_0 first.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Condition
from diffprobe.backbones.device import exact
from diffprobe.backbones.noise import NoiseSchedule, PredictionKind
from diffprobe.core.errors import BadTimestep, NonFinite
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import stack_noise


def kernel_factors(
    kind: PredictionKind, timesteps: Sequence[int], schedule: NoiseSchedule
) -> Float[Tensor, " timestep"]:
    """Return the factor by which a distance of predictions becomes the distance d of kernels, float64.

    With x_t = s x + n e and alpha = s_t / s_{t-1}, beta = n_t^2 - alpha^2 n_{t-1}^2 (for betas, those of the schedule):
    the posterior mean has x_0 with the factor s_{t-1} beta / n_t^2, and sigma^2 = beta.

    Raises: BadTimestep for timestep 0, which has no reverse kernel, and for one without signal or without noise.
    """
    factors = []
    for t in timesteps:
        ends = (schedule.signal[t - 1 : t + 1].double(), schedule.noise[t - 1 : t + 1].double())
        usable = t > 0 and bool((ends[0] > 0).all()) and float(ends[1][1]) > 0
        beta = float(ends[1][1] ** 2 - (ends[0][1] / ends[0][0]) ** 2 * ends[1][0] ** 2) if usable else 0.0
        if not beta > 0:
            raise BadTimestep(
                f"there is no reverse kernel from t={t}: it needs signal, noise, and a timestep before it.",
                fix="timesteps between the ends of the schedule",
            )
        signal, noise = float(ends[0][1]), float(ends[1][1])
        to_clean = {"epsilon": noise / signal, "v": noise, "flow": noise, "sample": 1.0}[kind]
        factors.append(to_clean * float(ends[0][0]) * beta**0.5 / noise**2)
    return torch.tensor(factors, dtype=torch.float64)


def overlap(distance: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the overlap 2 Phi(-d / 2) of Gaussians with equal variance, from the distance of their means.

    >>> [round(value, 4) for value in overlap(torch.tensor([0.0, 2.0])).tolist()]
    [1.0, 0.3173]
    """
    return torch.special.erfc(distance / 8**0.5)


@torch.no_grad()
def kernel_distances(
    score: DenoisingError,
    latents: Float[Tensor, "sample c h w"],
    keys: Sequence[str],
    conditions: Condition,
    timesteps: Sequence[int],
    *,
    on_sample: Callable[[int], object] = lambda count: None,
) -> Float[Tensor, "sample condition condition timestep"]:
    """Return the distance d between the kernels of each pair of conditions at the noised latents, float64.

    Args:
        score: the model, with the noise of its seed.
        latents: as `encode_images` returns them.
        keys: keys of the samples.
        conditions: encoded conditions, one row each.
        timesteps: positions on the training grid, from 1.
        on_sample: called with 1 after each sample.
    Raises: BadTimestep; NonFinite with the sample and the timestep.
    """
    schedule, network = score.spec.schedule, score.backbone.denoiser
    schedule.check(timesteps, score.spec.name)
    factors = kernel_factors(score.spec.prediction, timesteps, schedule)
    like = next(network.parameters())
    dtype = next(name for name, known in DTYPES.items() if known == like.dtype)
    n = len(next(iter(conditions.values())))
    found = torch.zeros(len(keys), n, n, len(timesteps), dtype=torch.float64)
    for sample, key in enumerate(keys):
        for column, t in enumerate(timesteps):
            clean = latents[sample : sample + 1]
            noise = stack_noise(score.seed, [key], t, latents.shape[1:])
            x_t = schedule.add(clean, noise, torch.tensor([t])).to(like)
            parts = []
            for rows in torch.arange(n).split(score.rows):
                condition = {
                    name: values[rows.to(values.device)].to(like.device) for name, values in conditions.items()
                }
                steps = torch.full((len(rows),), t, device=like.device)
                with exact(like.device, dtype):
                    predicted = score.backbone.denoise(x_t.expand(len(rows), -1, -1, -1), steps, condition)
                parts.append(predicted.value.double().flatten(1).cpu())
            outputs = torch.cat(parts)
            if not bool(outputs.isfinite().all()):
                raise NonFinite(
                    f"a prediction for sample '{key}' at t={t} is not finite.", fix="backbone.dtype=float32"
                )
            distances = (outputs[:, None] - outputs).square().sum(-1).sqrt()
            found[sample, :, :, column] = factors[column] * distances
        on_sample(1)
    return found


def class_overlap(distances: Float[Tensor, "sample n n timestep"], classes: Sequence[int]) -> Float[Tensor, "n n"]:
    """Return the overlap of class i with class j, averaged over the timesteps and the samples of class i.

    Args:
        distances: as `kernel_distances` returns them.
        classes: class of each sample; each class has one.
    """
    values, of_sample = overlap(distances).mean(-1), torch.tensor(list(classes))
    n = values.shape[1]
    return torch.stack([values[of_sample == number][:, number].mean(0) for number in range(n)])
