"""Samples follow from key, seed and condition, whatever the batch, and equal those of diffusers."""

from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.generated_images import generated_latents, read_again
from diffprobe.scoring.noise_sets import stack_noise

KEYS = ["a", "b", "c"]
CAPTIONS = ["noto emoji, red circle", "twemoji emoji, blue square", "noto emoji, green circle"]


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DenoisingError:
    return DenoisingError.from_pretrained(str(tiny_sd), device="cpu")


def sampled(model: DenoisingError, rows: list[int], *, guidance: float = 2.0, seed: int = 0) -> torch.Tensor:
    conditions = model.encode_conditions([CAPTIONS[row] for row in rows])
    return generated_latents(model, [KEYS[row] for row in rows], conditions, steps=4, guidance=guidance, seed=seed)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(model: DenoisingError, tiny_sd: Path) -> None:
    together = sampled(model, [0, 1, 2])
    alone = torch.cat([sampled(model, [row]) for row in (0, 1, 2)])
    torch.testing.assert_close(alone, together, atol=1e-3, rtol=1e-3)
    single = DenoisingError.from_pretrained(str(tiny_sd), device="cpu", rows=1)
    torch.testing.assert_close(sampled(single, [0, 1, 2]), together, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(sampled(model, [0], seed=1), together[:1])
    assert not torch.allclose(sampled(model, [0], guidance=1.0), together[:1])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_steps_are_those_of_ddim_in_diffusers(model: DenoisingError, tiny_sd: Path, guidance: float) -> None:
    from diffusers import DDIMScheduler

    config = DDIMScheduler.load_config(str(tiny_sd), subfolder="scheduler")
    scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(4)  # of a number that divides 1,000, all steps are equally long
    x = stack_noise(0, [f"generated:{key}" for key in KEYS], 0, model.spec.latent_shape)
    given, empty = model.encode_conditions(CAPTIONS), model.encode_conditions([""] * 3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            steps = torch.full((3,), int(t))
            output = model.backbone.denoise(x, steps, given).value
            base = model.backbone.denoise(x, steps, empty).value
            x = scheduler.step(base + guidance * (output - base), t, x).prev_sample
    torch.testing.assert_close(sampled(model, [0, 1, 2], guidance=guidance), x, atol=1e-3, rtol=1e-3)


def test_images_are_rounded_and_encoded_as_real_ones(model: DenoisingError) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = read_again(model, lambda latents: images, torch.zeros(2, *model.spec.latent_shape))
    torch.testing.assert_close(found, model.encode_images((images * 255).round() / 255))


def test_what_cannot_be_sampled_is_refused(model: DenoisingError, tmp_path: Path) -> None:
    conditions = model.encode_conditions(CAPTIONS[:1])
    with pytest.raises(ConfigError, match="sampling_steps=2000"):
        generated_latents(model, ["a"], conditions, steps=2000, guidance=1.0, seed=0)
