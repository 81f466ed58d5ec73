"""Overlap of reverse kernels: by hand, by the published divergence, and by a plain loop over diffusers' own step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.backbones.families import dit
from diffprobe.backbones.noise import flow_schedule, make_schedule
from diffprobe.core.errors import BadTimestep
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.kernel_overlap import class_overlap, kernel_distances, kernel_factors, overlap

DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
        "beta_schedule": "linear"}  # fmt: skip


def test_the_overlap_is_the_integral_of_the_smaller_density() -> None:
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    for d in (0.0, 0.5, 1.0, 3.0):
        one, two = (torch.exp(-(x - m).square() / 2) / (2 * torch.pi) ** 0.5 for m in (0.0, d))
        area = torch.trapezoid(torch.minimum(one, two), x)
        assert float(overlap(torch.tensor(d, dtype=torch.float64))) == pytest.approx(float(area), abs=1e-5)


@pytest.mark.parametrize("t", [10, 300, 900])
def test_half_the_squared_distance_is_the_published_divergence(t: int) -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha, abar = 1 - betas[t], (1 - betas).cumprod(0)[t]
    weight = betas[t] ** 2 / (2 * betas[t] * alpha * (1 - abar))  # sigma^2 = beta
    (factor,) = kernel_factors("epsilon", [t], make_schedule(DDPM)).tolist()
    assert factor**2 / 2 == pytest.approx(float(weight), rel=2e-3)  # the schedule is float32


def test_by_hand() -> None:
    """A flow of four steps at t = 2: alpha = (1/2) / (3/4), beta = 1/4 - (4/9) / 16, x_0 times 3/4 beta / n^2."""
    schedule = flow_schedule(4)
    beta = 1 / 4 - (4 / 9) / 16
    (factor,) = kernel_factors("sample", [2], schedule).tolist()
    assert factor == pytest.approx(0.75 * beta / 0.25 / beta**0.5, rel=1e-6)
    (velocity,) = kernel_factors("flow", [2], schedule).tolist()
    assert velocity == pytest.approx(0.5 * factor, rel=1e-6)  # x_0 = x_t - s u
    distances = torch.tensor([[[[0.0], [2.0]], [[2.0], [0.0]]], [[[0.0], [1.0]], [[1.0], [0.0]]]])
    found = class_overlap(distances.double(), [0, 1])
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.31731], [0.61708, 1.0]]).double(), atol=1e-5, rtol=0)


def test_it_is_a_plain_loop_over_the_step_of_diffusers(tiny_sd: Path) -> None:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    score = DenoisingError.from_pretrained(str(tiny_sd), device="cpu", seed=3)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    scheduler: Any = DDPMScheduler.from_config(
        pipeline.scheduler.config, variance_type="fixed_large", clip_sample=False
    )
    latents = score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    texts, keys, timesteps = ["a cat", "a dog", ""], ["a", "b"], [100, 700]
    found = kernel_distances(score, latents, keys, score.encode_conditions(texts), timesteps)
    assert found.shape == (2, 3, 3, 2)
    scheduler.set_timesteps(1000)
    alphas = scheduler.alphas_cumprod.double()
    with torch.no_grad():
        for row, key in enumerate(keys):
            for column, t in enumerate(timesteps):
                noise = noise_for(3, key, t, tuple(latents.shape[1:]))[None]
                x_t = scheduler.add_noise(latents[row : row + 1], noise, torch.tensor([t]))
                means = []
                for text in texts:
                    states, _ = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
                    out = pipeline.unet(x_t, t, states).sample
                    step = scheduler.step(out, t, x_t, generator=torch.Generator().manual_seed(1))
                    means.append(step.prev_sample.double())  # the same noise is added for all
                sigma = (1 - alphas[t] / alphas[t - 1]).sqrt()
                for i in range(3):
                    for j in range(3):
                        d = float((means[i] - means[j]).norm() / sigma)
                        assert float(found[row, i, j, column]) == pytest.approx(d, rel=1e-3, abs=1e-5)


def test_the_distances_do_not_depend_on_batch_and_order(tmp_path: Path) -> None:
    """Also for a model of classes with a learned variance, whose channels are left out."""
    score = DenoisingError.from_pretrained(str(dit.tiny(tmp_path / "dit")), device="cpu")
    latents = score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = kernel_distances(score, latents, ["a", "b"], score.encode_conditions([0, 3, 1]), [500])
    moved = kernel_distances(score, latents.flip(0), ["b", "a"], score.encode_conditions([1, 0, 3]), [500])
    order = [2, 0, 1]
    torch.testing.assert_close(moved.flip(0), found[:, order][:, :, order], atol=1e-5, rtol=1e-4)
    one = DenoisingError(score.backbone, score.spec, rows=1)
    again = kernel_distances(one, latents, ["a", "b"], one.encode_conditions([0, 3, 1]), [500])
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-4)
    assert found.diagonal(dim1=1, dim2=2).abs().max() == 0 and float(found[0, 0, 1, 0]) > 0


@pytest.mark.parametrize("t", [0, 1000])
def test_a_timestep_without_a_kernel_is_refused(t: int) -> None:
    with pytest.raises(BadTimestep, match=f"t={t}"):
        kernel_factors("flow", [t], flow_schedule(1000))
