"""Samplers: the timesteps of diffusers' own, and clear refusals."""

import diffusers
import pytest
import torch

from diffprobe.backbones.samplers import (
    SAMPLERS,
    check_timesteps,
    make_sampler,
    reread_key,
    start_key,
    step_generators,
)
from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.scoring.sampling import sampling_timesteps

CONFIG = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
CPU = torch.device("cpu")


def make(name: str, steps: int, **changes: object):
    return make_sampler(name, {**CONFIG, **changes}, steps, where="toy", device=CPU)


@pytest.mark.parametrize("name", ["ddim", "dpm", "euler"])
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_timesteps_are_evenly_spaced_and_begin_at_the_end_of_the_grid(name: str, steps: int) -> None:
    assert make(name, steps).timesteps == sampling_timesteps(steps, 1000)


def test_lcm_takes_the_timesteps_it_was_distilled_on() -> None:
    assert make("lcm", 4).timesteps == (999, 759, 499, 259)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_perfect_prediction_ends_at_the_clean_latents(name: str) -> None:
    """A model that always knows the noise gives the clean sample back, whatever the sampler."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 4, 8, 8, generator=generator)
    sampler = make(name, 4, set_alpha_to_one=True)
    alphas = diffusers.DDIMScheduler.from_config(CONFIG).alphas_cumprod
    latents = sampler.start(torch.randn(2, 4, 8, 8, generator=generator))
    for step, t in enumerate(sampler.timesteps):
        x_t, a = sampler.model_input(step, latents), alphas[t]
        noise = (x_t - a.sqrt() * clean) / (1 - a).sqrt()
        latents = sampler.step(step, noise, latents, step_generators(0, [0, 1]))
    torch.testing.assert_close(latents, clean, atol=2e-3 if name == "lcm" else 1e-4, rtol=0)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_shifted_ratio_of_cogvideox_is_that_of_every_sampler(name: str) -> None:
    shipped = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert shipped.config.snr_shift_scale == 3.0
    config = {key: value for key, value in shipped.config.items() if key[0] != "_"}
    config["_class_name"] = "CogVideoXDDIMScheduler"
    found = make_sampler(name, config, 4, where="toy", device=CPU)._scheduler.alphas_cumprod
    torch.testing.assert_close(found[:-1].double(), shipped.alphas_cumprod[:-1], atol=1e-5, rtol=0)


def test_noise_of_steps_depends_on_seed_and_number_alone() -> None:
    def draw(seed: int, numbers: list[int]) -> list[float]:
        return [float(torch.randn(1, generator=g)) for g in step_generators(seed, numbers)]

    assert draw(0, [0, 1, 0]) == [*draw(0, [0]), *draw(0, [1]), *draw(0, [0])]
    assert len({*draw(0, [0, 1]), *draw(1, [0, 1])}) == 4
    assert len({start_key(0), start_key(1), reread_key(0), reread_key(1)}) == 4


def test_timesteps_off_the_grid_are_named_with_the_nearest() -> None:
    check_timesteps([999, 249], (999, 749, 499, 249), name="ddim")
    with pytest.raises(BadTimestep) as error:
        check_timesteps([200, 999, 700], (999, 749, 499, 249), name="ddim")
    text = str(error.value)
    assert "t=200, t=700" in text and "nearest: 249, 749" in text and "999, 749, 499, 249" in text


@pytest.mark.parametrize(("name", "steps"), [("ddim", 1001), ("lcm", 51), ("euler", 1001)])
def test_too_many_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"sampling.sampler={name}"):
        make(name, steps)
