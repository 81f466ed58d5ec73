"""Sampling with a tap replaced during a band of steps, against diffusers' own DDIM loop."""

import pytest
import torch

from diffprobe.backbones.families import sd_unet
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.rng import noise_for
from diffprobe.scoring.intervention_network import InterventionNetwork
from diffprobe.scoring.sampling import PromptSampler, bands, denoised, sampling_timesteps
from tests.backbones.plans import plan_for

PROMPTS, KEYS = ["red cat", "blue dog", "red dog"], ["a", "b", "c"]
STEPS = sampling_timesteps(4, 1000)


def sampler_of(path, **options):
    plan = plan_for(str(path), taps=["mid_block"], timesteps=[500])
    network = InterventionNetwork(plan, device="cpu", rows=2)
    return PromptSampler(network, PROMPTS, KEYS, STEPS, **{"guidance": 3.0, "seed": 7, **options})


@pytest.fixture(scope="module")
def sampler(tiny_sd):
    return sampler_of(tiny_sd)


def plain_loop(path, hook=None, band=()):
    """Sample all prompts by diffusers' pipeline and DDIMScheduler; `hook` replaces the mid block's output in a band."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(len(STEPS))
    assert scheduler.timesteps.tolist() == list(STEPS)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    with torch.no_grad():
        given, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
        empty, _ = pipeline.encode_prompt([""] * 3, "cpu", 1, do_classifier_free_guidance=False)
        latents = torch.stack([noise_for(7, f"generated:{key}", 0, (4, 16, 16)) for key in KEYS])
        for t in scheduler.timesteps.tolist():
            handle = pipeline.unet.mid_block.register_forward_hook(hook) if t in band else None
            with_text, without = (pipeline.unet(latents, t, states).sample for states in (given, empty))
            if handle is not None:
                handle.remove()
            latents = scheduler.step(without + 3.0 * (with_text - without), t, latents, eta=0.0).prev_sample
    return latents


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_the_ddim_of_diffusers(sampler, tiny_sd, tmp_path, prediction):
    here, path = sampler, tiny_sd
    if prediction == "v_prediction":
        path = sd_unet.tiny(tmp_path / "v", prediction=prediction)
        here = sampler_of(path)
    torch.testing.assert_close(here.untouched[-1], plain_loop(path), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_intervention_acts_in_its_band_alone(sampler, tiny_sd):
    band = STEPS[1:3]
    found = sampler.sample("mid_block", band, lambda t: torch.zeros_like)
    expected = plain_loop(tiny_sd, lambda module, args, output: torch.zeros_like(output), band)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, sampler.untouched[-1], rtol=1e-3, atol=1e-4)
    assert torch.equal(sampler.sample("mid_block", (), lambda t: torch.zeros_like), sampler.untouched[-1])


def test_the_change_may_depend_on_the_step(sampler):
    seen = []
    sampler.sample("mid_block", STEPS[:2], lambda t: lambda x: seen.append(t))
    assert seen == [999] * 4 + [749] * 4  # two chunks of rows, two branches of guidance


@pytest.mark.slow
def test_patching_takes_the_map_of_the_untouched_run_of_the_donor(sampler):
    assert torch.equal(sampler.patched("mid_block", STEPS, [0, 1, 2]), sampler.untouched[-1])  # each its own donor
    band = STEPS[-1:]
    found = sampler.patched("mid_block", band, [1, 2, 0])
    maps = []
    sampler.sample("mid_block", band, lambda t: lambda x: maps.append(x.clone()))
    of = {False: torch.cat(maps[0::2]), True: torch.cat(maps[1::2])}  # by branch: prompts, then empty
    calls = []

    def put(x):
        calls.append(len(x))
        start = 0 if len(calls) <= 2 else 2
        return of[len(calls) % 2 == 0][[1, 2, 0]][start : start + len(x)]

    expected = sampler.sample("mid_block", band, lambda t: put)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, sampler.untouched[-1])


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "sample"])
def test_a_perfect_prediction_gives_the_clean_latents_and_the_noise(sampler, kind):
    from diffprobe.scoring.denoising_error import prediction_target

    schedule, t = sampler.network.plan.schedule, torch.tensor([300])
    if kind == "flow":
        from diffprobe.backbones.noise import NoiseSchedule

        line = torch.arange(1001) / 1000
        schedule = NoiseSchedule(signal=1 - line, noise=line, digest="")
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    x_t = schedule.add(clean, noise, t)
    found = denoised(kind, prediction_target(kind, clean, noise, t, schedule), x_t, 300, schedule)
    torch.testing.assert_close(found[0], clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], noise, rtol=1e-4, atol=1e-5)


def test_every_step_belongs_to_the_nearest_timestep():
    assert bands((90, 60, 30), (60,)) == {60: (90, 60, 30)}
    with pytest.raises(ConfigError, match=r"nearest to t=25(.|\n)*more sampling_steps"):
        bands(STEPS, (25, 200, 900))


def test_steps_out_of_range_are_refused(sampler):
    for n in (0, 1001):
        with pytest.raises(ConfigError, match=f"sampling_steps={n} is out of range: 1 to 1000"):
            sampling_timesteps(n, 1000)
    with pytest.raises(NonFinite, match="sample 'a'"):
        sampler.sample("mid_block", STEPS[-1:], lambda t: lambda x: x * torch.nan)
