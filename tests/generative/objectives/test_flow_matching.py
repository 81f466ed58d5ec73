"""Flow matching against a plain reference, by hand, and on one pixel with two values, whose velocity field is known."""

import math

import pytest
import torch

from diffprobe.backbones.noise import flow_schedule, load_prediction_kind, load_schedule
from diffprobe.core.errors import ConfigError
from diffprobe.generative.objectives.base import ObjectiveConfig, compute_loss, declared_process, mean_squared_error
from diffprobe.generative.objectives.flow_matching import Config, FlowProcess, make, make_process


def levels(config: Config, n: int = 200_000) -> torch.Tensor:
    return make_process(config).draw_levels(n, torch.Generator().manual_seed(0))


def test_by_hand() -> None:
    """At t = 250, x_t = 0.75 * 4 + 0.25 * (-2) = 2.5, and the velocity is -2 - 4 = -6."""
    process = make_process(Config())
    clean, noise, t = torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), -2.0), torch.tensor([250])
    objective = make(Config(), process)
    assert process.add_noise(clean, noise, t).item() == 2.5
    assert objective.target(clean, noise, t).item() == -6
    errors = mean_squared_error(torch.full((1, 1, 1, 1), -5.0), objective.target(clean, noise, t))
    assert compute_loss(objective, errors, t).item() == 1
    assert process.snr(t).item() == pytest.approx(9)


def test_the_loss_is_that_of_a_plain_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    clean, noise, prediction = (torch.randn(5, 3, 2, 2, generator=generator) for _ in range(3))
    t = torch.tensor([1, 100, 500, 999, 1000])
    expected = 0.0
    for row in range(5):
        s = t[row].item() / 1000
        path = [(1 - s) * x + s * e for x, e in zip(clean[row].flatten(), noise[row].flatten(), strict=True)]
        found = FlowProcess(Config()).add_noise(clean, noise, t)[row].flatten()
        torch.testing.assert_close(found, torch.stack(path))
        wrong = (prediction[row] - (noise[row] - clean[row])).flatten()
        expected += sum(float(x) ** 2 for x in wrong) / 12 / 5
    objective = make(Config(), FlowProcess(Config()))
    loss = compute_loss(objective, mean_squared_error(prediction, objective.target(clean, noise, t)), t)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_process_is_the_one_that_flow_checkpoints_are_read_with(tmp_path) -> None:
    process = make_process(Config(shift=3.0))
    expected = flow_schedule(1000)
    assert torch.equal(process.signal, expected.signal) and torch.equal(process.sigma, expected.noise)
    assert process.n_timesteps == 1001 and not process.state_dict()
    scheduler = process.scheduler()
    assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and scheduler.config.shift == 3.0
    scheduler.save_pretrained(tmp_path)
    assert load_schedule(tmp_path).digest == expected.digest and load_prediction_kind(tmp_path) == "flow"


def test_a_step_of_the_saved_sampler_to_the_end_gives_the_clean_latents() -> None:
    process, generator = make_process(Config()), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 2, 3, 3, generator=generator) for _ in range(2))
    scheduler = process.scheduler()
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [1000]
    target = make(Config(), process).target(clean, noise, torch.tensor([1000]))
    torch.testing.assert_close(scheduler.step(target, scheduler.timesteps[0], noise).prev_sample, clean)


def test_noise_levels_have_the_declared_density() -> None:
    z = torch.logit(levels(Config(mean=-0.5, std=1.5)))
    assert float(z.mean()) == pytest.approx(-0.5, abs=0.02) and float(z.std()) == pytest.approx(1.5, abs=0.02)
    uniform = levels(Config(density="uniform"))
    quantiles = torch.quantile(uniform, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), atol=0.01, rtol=0)


def test_a_shift_moves_noise_levels_as_in_sd3_and_adds_its_logarithm_to_their_logit() -> None:
    plain, shifted = levels(Config(), 1000), levels(Config(shift=3.0), 1000)
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    torch.testing.assert_close(torch.logit(shifted), torch.logit(plain) + math.log(3))
    assert float(levels(Config(density="uniform", shift=3.0)).median()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("config", [Config(), Config(density="uniform"), Config(std=30.0), Config(mean=-40.0)])
def test_timesteps_are_on_the_grid_seeded_and_never_clean(config: Config) -> None:
    process = make_process(config)
    drawn = process.draw(20_000, torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.long and 1 <= int(drawn.min()) and int(drawn.max()) <= 1000
    assert torch.equal(drawn, process.draw(20_000, torch.Generator().manual_seed(3)))
    assert not torch.equal(drawn, process.draw(20_000, torch.Generator().manual_seed(4))) or config.mean == -40


@pytest.mark.parametrize("t", [100, 500, 900])
def test_in_a_planted_world_the_loss_is_least_at_the_known_velocity(t: int) -> None:
    """One pixel is +2 or -2. Then x_0 given x_t is a tanh, and E[noise - x_0 | x_t] = (x_t - E[x_0 | x_t]) / s."""
    generator, process = torch.Generator().manual_seed(0), make_process(Config())
    n = 200_000
    clean = 4.0 * torch.randint(2, (n, 1, 1, 1), generator=generator) - 2.0
    noise, timesteps = torch.randn(n, 1, 1, 1, generator=generator), torch.full((n,), t)
    x_t, s = process.add_noise(clean, noise, timesteps), t / 1000
    velocity = (x_t - 2 * torch.tanh(2 * (1 - s) * x_t / s**2)) / s
    objective = make(Config(), process)
    target = objective.target(clean, noise, timesteps)

    def loss(prediction: torch.Tensor) -> float:
        return float(compute_loss(objective, mean_squared_error(prediction, target), timesteps))

    least = loss(velocity)
    assert least < loss(velocity + 0.1) and least < loss(velocity - 0.1) and least < loss(1.1 * velocity)
    for middle in (-1.0, 0.0, 1.0):  # the mean target near a point is the velocity there
        near = (x_t.flatten() - middle).abs() < 0.1
        if int(near.sum()) > 500:
            difference = (target - velocity).flatten()[near]
            assert abs(float(difference.mean())) < 5 * float(difference.std()) / int(near.sum()) ** 0.5


@pytest.mark.slow
def test_a_network_trained_by_it_follows_the_known_velocity_to_the_two_values() -> None:
    """A small network on the planted pixel, then 50 Euler steps of the saved sampler: half of the samples per value."""
    torch.manual_seed(0)
    process, generator = make_process(Config(density="uniform")), torch.Generator().manual_seed(0)
    objective = make(Config(), process)
    layers = [torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)]
    network = torch.nn.Sequential(*layers)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network(torch.stack([x.flatten(), t / 500 - 1], dim=1))
        return found.reshape(x.shape)

    steps = 800
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        clean = 4.0 * torch.randint(2, (256, 1, 1, 1), generator=generator) - 2.0
        noise, t = torch.randn(256, 1, 1, 1, generator=generator), process.draw(256, generator)
        prediction = predict(process.add_noise(clean, noise, t), t)
        loss = compute_loss(objective, mean_squared_error(prediction, objective.target(clean, noise, t)), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scheduler, x = process.scheduler(), torch.randn(1000, 1, 1, 1, generator=generator)
    scheduler.set_timesteps(50)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t.expand(1000)), t, x).prev_sample
    assert float(((x.abs() - 2).abs() < 0.4).float().mean()) > 0.95
    assert 0.4 < float((x > 0).float().mean()) < 0.6


def test_it_declares_its_process_and_objectives_on_betas_do_not() -> None:
    declared = declared_process(ObjectiveConfig(name="flow_matching", params={"shift": 2.0}))
    assert isinstance(declared, FlowProcess) and declared.scheduler().config.shift == 2.0
    for name in ("noise_prediction", "velocity_prediction"):
        assert declared_process(ObjectiveConfig(name=name)) is None


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"std": 0.0}, "std=0.0.*more than 0"),
        ({"shift": -1.0}, "shift=-1.0.*more than 0"),
        ({"shift": float("inf")}, "shift=inf"),
        ({"mean": float("nan")}, "mean=nan"),
        ({"density": "uniform", "mean": 0.3}, "mean=0.3 has no effect with density=uniform"),
        ({"density": "uniform", "std": 2.0}, "std=2.0 has no effect with density=uniform"),
    ],
)
def test_bad_settings_are_refused(params: dict, facts: str) -> None:
    with pytest.raises(ConfigError, match=facts):
        Config(**params)
