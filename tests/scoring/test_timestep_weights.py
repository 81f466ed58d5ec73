"""Losses are converted as if the prediction itself were converted; learned weights find where the signal is."""

import pytest
import torch

from diffprobe.backbones.base import Prediction
from diffprobe.backbones.noise import NoiseSchedule, PredictionKind, flow_schedule, make_schedule
from diffprobe.core.errors import BadTimestep, ConfigError, TooFewGroups
from diffprobe.scoring.denoising_error import denoising_error, prediction_target
from diffprobe.scoring.timestep_weights import exponential_weights, learned_weights, loss_factors

STEPS = [50, 400, 900]


def schedule_of(kind: str) -> NoiseSchedule:
    betas = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
    return flow_schedule(1000) if kind == "flow" else make_schedule({**betas, "beta_start": 0.0001, "beta_end": 0.02})


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "sample"])
@pytest.mark.parametrize("loss", ["noise", "sample"])
def test_a_converted_error_is_the_error_of_the_converted_prediction(kind: PredictionKind, loss: str) -> None:
    schedule = schedule_of(kind)
    clean, noise = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    t = torch.tensor(STEPS)
    signal, scale = (x.double()[t][:, None, None, None] for x in (schedule.signal, schedule.noise))
    x_t = signal * clean + scale * noise
    predicted = prediction_target(kind, clean, noise, t, schedule) + 0.1 * torch.randn(3, 2, 4, 4)
    error = denoising_error(Prediction(predicted, kind), clean, noise, t, schedule)
    # plain: recover the noise and the clean sample that the prediction implies
    implied = {
        "epsilon": lambda: (predicted, (x_t - scale * predicted) / signal),
        "v": lambda: (scale * x_t + signal * predicted, signal * x_t - scale * predicted),
        "flow": lambda: (x_t + signal * predicted, x_t - scale * predicted),
        "sample": lambda: ((x_t - signal * predicted) / scale, predicted),
    }[kind]()
    found, target = (implied[0], noise) if loss == "noise" else (implied[1], clean)
    plain = (found - target).square().flatten(1).mean(1)
    assert torch.allclose(error * loss_factors(kind, loss, STEPS, schedule), plain, rtol=1e-5)


def test_the_native_loss_is_not_converted_and_a_division_by_zero_is_named() -> None:
    assert loss_factors("flow", "native", STEPS, flow_schedule(1000)).tolist() == [1, 1, 1]
    with pytest.raises(BadTimestep, match="t=0"):
        loss_factors("sample", "noise", [0, 500], flow_schedule(1000))
    with pytest.raises(BadTimestep, match="t=1000"):
        loss_factors("epsilon", "sample", [1000], flow_schedule(1000))


def test_the_published_weights_fall_by_the_factor_of_the_paper() -> None:
    weights = exponential_weights([100, 200, 300], 1000)
    assert torch.allclose(weights[1:] / weights[:-1], torch.tensor(-0.7).double().exp())


def planted(n: int = 60) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Errors in which the right candidate is better at timestep 1 clearly, at 2 hardly, at 0 never."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(n, 4, 3, generator=generator, dtype=torch.float64)
    right = torch.randint(4, (n,), generator=generator)
    errors[torch.arange(n), right] -= torch.tensor([-0.5, 2.0, 0.3], dtype=torch.float64)
    return errors, right, [f"g{i // 3}" for i in range(n)]


def test_learned_weights_are_mean_over_variance_of_the_margin_of_groups() -> None:
    errors, right, groups = planted()
    weights = learned_weights(errors, right, groups)
    margins = torch.stack([(errors[i].sum(0) - errors[i, r]) / 3 - errors[i, r] for i, r in enumerate(right.tolist())])
    means = margins.reshape(20, 3, 3).mean(1)
    plain = (means.mean(0) / means.var(0)).clamp_min(0)
    assert torch.allclose(weights, plain / plain.sum()) and weights[0] == 0 and weights[1] > 3 * weights[2]


def test_learned_weights_do_not_depend_on_the_order_of_samples_or_candidates() -> None:
    errors, right, groups = planted()
    weights = learned_weights(errors, right, groups)
    rows, columns = torch.randperm(60), torch.randperm(4)
    other = learned_weights(errors[rows][:, columns], columns.argsort()[right[rows]], [groups[row] for row in rows])
    assert torch.allclose(weights, other)
    missing = torch.cat([errors, torch.full((60, 1, 3), torch.nan, dtype=torch.float64)], 1)
    assert torch.allclose(weights, learned_weights(missing, right, groups))


def test_weights_that_cannot_be_learned_are_refused() -> None:
    errors, right, groups = planted()
    with pytest.raises(TooFewGroups, match="2 are too few"):
        learned_weights(errors[:6], right[:6], groups[:6])
    with pytest.raises(ConfigError, match="no timestep"):
        learned_weights(errors[:, :1].expand(-1, 4, -1).clone(), right, groups)
