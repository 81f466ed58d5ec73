import math

import diffusers
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from diffprobe.backbones.noise import clean_schedule, edm_schedule, edm_sigmas, load_schedule, make_schedule
from diffprobe.core.errors import BadTimestep, WeightsMismatch, WeightsMissing

SAMPLERS = sorted(  # those that the pipelines of epsilon and v models take
    {sampler.name for sampler in KarrasDiffusionSchedulers}.union(
        {"LCMScheduler", "TCDScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"}
    ).difference({"EDMEulerScheduler", "DPMSolverSDEScheduler"})  # no betas; a package that is not ours
)
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("betas", [BETAS, {"beta_schedule": "squaredcos_cap_v2"}], ids=["sd", "cosine"])
def test_noise_is_that_of_ddpm_whichever_sampler_is_shipped(sampler: str, betas: dict) -> None:
    shipped = getattr(diffusers, sampler)(**betas)
    schedule = make_schedule(dict(shipped.config) | {"_class_name": sampler})
    clean, noise = torch.randn(2, 6, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 25, 261, 500, 999])
    expected = diffusers.DDPMScheduler.from_config(shipped.config).add_noise(clean, noise, timesteps)
    torch.testing.assert_close(schedule.add(clean, noise, timesteps), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_follows_the_closed_form_of_the_betas(sampler: str) -> None:
    shipped = getattr(diffusers, sampler)(**BETAS)
    schedule = make_schedule(dict(shipped.config) | {"_class_name": sampler})
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # scaled_linear
    a = (1 - roots**2).cumprod(0)
    torch.testing.assert_close(schedule.signal.double(), a.sqrt(), atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.noise.double(), (1 - a).sqrt(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", FLOWS)
def test_flows_follow_their_closed_form_whatever_their_shift(sampler: str) -> None:
    shipped = getattr(diffusers, sampler)(shift=3.0)
    schedule = make_schedule(dict(shipped.config) | {"_class_name": sampler})
    s = torch.arange(1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.signal.double(), 1 - s, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.noise.double(), s, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("sampler", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_the_noise_of_cogvideox_has_its_shifted_ratio(sampler: str, rescaled: bool) -> None:
    shipped = getattr(diffusers, sampler)(**BETAS, rescale_betas_zero_snr=rescaled, snr_shift_scale=3.0)
    schedule = make_schedule(dict(shipped.config) | {"_class_name": sampler})
    clean, noise = torch.randn(2, 6, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 25, 261, 500, 999])
    expected = shipped.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(schedule.add(clean, noise, timesteps), expected, atol=1e-6, rtol=1e-6)
    plain = make_schedule({"num_train_timesteps": 1000, **BETAS, "rescale_betas_zero_snr": rescaled})
    if not rescaled:
        assert schedule.snr(261) == pytest.approx(plain.snr(261) / 3, rel=1e-4)
    assert schedule.digest != plain.digest
    assert make_schedule({**shipped.config, "_class_name": sampler, "snr_shift_scale": 1.0}).digest != schedule.digest


def test_noise_follows_the_closed_form() -> None:
    schedule = make_schedule({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, **BETAS})
    root = [math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999 for i in range(1000)]
    a = math.prod(1 - r * r for r in root[:262])
    row = schedule.add(torch.ones(1, 2), torch.tensor([[0.0, 1.0]]), torch.tensor([261]))[0]
    assert row.tolist() == pytest.approx([math.sqrt(a), math.sqrt(a) + math.sqrt(1 - a)], abs=1e-5)
    assert schedule.sigma(261) == pytest.approx(math.sqrt((1 - a) / a), rel=1e-4)


def test_rescaled_betas_are_heeded() -> None:
    config = {"num_train_timesteps": 1000, **BETAS, "rescale_betas_zero_snr": True}
    plain = make_schedule({**config, "rescale_betas_zero_snr": False})
    assert float(make_schedule(config).signal[-1]) < 1e-3 < float(plain.signal[-1])
    assert make_schedule(config).digest != plain.digest


def test_digest_is_one_of_the_betas_and_not_of_the_sampler() -> None:
    ddim, euler = (getattr(diffusers, name)(**BETAS).config for name in ("DDIMScheduler", "EulerDiscreteScheduler"))
    assert make_schedule(ddim).digest == make_schedule(euler).digest
    assert make_schedule(ddim).digest != make_schedule(diffusers.DDIMScheduler(beta_end=0.013).config).digest


def test_timesteps_off_the_grid_are_refused_all_at_once() -> None:
    schedule = make_schedule({"num_train_timesteps": 1000, **BETAS})
    schedule.check([0, 999], "sd")
    with pytest.raises(BadTimestep, match=r"t=-1, t=1000 outside .* 'sd'") as caught:
        schedule.check([5, -1, 1000], "sd")
    assert "0..999" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "num_train_timesteps": 1000},
    ],
)
def test_a_flow_runs_straight_from_image_to_noise(config: dict) -> None:
    schedule, x, noise = make_schedule(config), torch.randn(3, 2), torch.randn(3, 2)
    found = schedule.add(x, noise, torch.tensor([0, 250, 1000]))
    torch.testing.assert_close(found, torch.stack([x[0], 0.75 * x[1] + 0.25 * noise[1], noise[2]]))
    assert schedule.n_timesteps == 1001 and schedule.sigma(500) == 1


def test_the_process_of_edm_has_its_noise_levels_and_unit_variance() -> None:
    """The grid of 18 steps is that of EDM's sampler (2206.00364, equation 5), as diffusers has it too, in reverse."""
    from diffusers import EDMEulerScheduler

    sampler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    sampler.set_timesteps(18)
    expected = sampler.sigmas[:18].double().flip(0)
    torch.testing.assert_close(edm_sigmas(18), expected, atol=0, rtol=1e-5)
    schedule = edm_schedule(18, 0.5)
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(18))
    torch.testing.assert_close(torch.tensor([schedule.sigma(t) for t in range(18)]), (expected / 0.5).float())
    assert schedule.n_timesteps == 18 and schedule.digest != edm_schedule(18, 1.0).digest


def test_a_timestep_is_found_by_its_ratio_of_signal_to_noise() -> None:
    schedule, flow = make_schedule({"num_train_timesteps": 1000, **BETAS}), make_schedule({"use_flow_sigmas": True})
    assert [schedule.nearest(schedule.snr(t), "sd") for t in (0, 25, 500, 999)] == [0, 25, 500, 999]
    assert flow.nearest(1.0, "flux") == 500 and flow.nearest(9.0, "flux") == 250
    for bad in (0.0, -1.0, 1e9):
        with pytest.raises(BadTimestep, match=r"'sd' has no timestep .* of"):
            schedule.nearest(bad, "sd")
    with pytest.raises(BadTimestep, match="input is clean"):
        clean_schedule().nearest(1.0, "pixels")


def test_the_clean_schedule_has_one_timestep_and_no_noise() -> None:
    schedule, x = clean_schedule(), torch.randn(2, 3)
    assert torch.equal(schedule.add(x, torch.randn(2, 3), torch.zeros(2, dtype=torch.long)), x)
    with pytest.raises(BadTimestep, match="t=1"):
        schedule.check([1], "pixels")


@pytest.mark.parametrize(
    "config",
    [
        {**diffusers.EDMEulerScheduler().config, "_class_name": "EDMEulerScheduler"},
        {**diffusers.EDMDPMSolverMultistepScheduler().config, "_class_name": "EDMDPMSolverMultistepScheduler"},
        {
            **diffusers.EulerDiscreteScheduler(timestep_type="continuous").config,
            "_class_name": "EulerDiscreteScheduler",
        },
        {**diffusers.ScoreSdeVeScheduler().config, "_class_name": "ScoreSdeVeScheduler"},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_schedule": "made_up"},
    ],
)
def test_schedules_of_other_kinds_of_models_are_refused(config: dict) -> None:
    with pytest.raises(WeightsMismatch, match=config["_class_name"]):
        make_schedule(config)


def test_a_missing_config_is_named(tmp_path) -> None:
    with pytest.raises(WeightsMissing, match="scheduler"):
        load_schedule(tmp_path)
