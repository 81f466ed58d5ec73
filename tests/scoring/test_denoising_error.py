from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.base import Condition, Prediction
from diffprobe.backbones.families import dit, sd_unet
from diffprobe.backbones.noise import flow_schedule, make_schedule
from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError, denoising_error, prediction_target

CAPTIONS = ["noto emoji, red circle", "twemoji emoji, blue square", ""]
KEYS = ["a", "b"]
RECORDED = [  # by an independent implementation on the diffusers pipeline; image, caption, timestep
    [[1.1310087, 1.0974940], [1.1304517, 1.1008044], [1.1189929, 1.0980878]],
    [[1.1304132, 1.1713525], [1.1272364, 1.1737415], [1.1247647, 1.1591985]],
]


@pytest.fixture(scope="module")
def pipeline(tiny_sd: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)


@pytest.fixture(scope="module")
def open_score(tiny_sd: Path) -> Callable[..., DenoisingError]:
    return lambda **options: DenoisingError.from_pretrained(str(tiny_sd), device="cpu", **options)


@pytest.fixture(scope="module")
def score(open_score: Callable[..., DenoisingError]) -> DenoisingError:
    return open_score(seed=3)


@pytest.fixture(scope="module")
def latents(score: DenoisingError) -> Tensor:
    return score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def captions(score: DenoisingError) -> Condition:
    """All three captions as candidates of both images."""
    return {name: x.expand(2, *x.shape) for name, x in score.encode_conditions(CAPTIONS).items()}


def test_targets_are_those_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([10, 900])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    schedule = make_schedule(dict(scheduler.config))
    assert torch.equal(prediction_target("epsilon", clean, noise, t, schedule), noise)
    assert torch.equal(prediction_target("sample", clean, noise, t, schedule), clean)
    velocity = scheduler.get_velocity(clean, noise, t)
    torch.testing.assert_close(prediction_target("v", clean, noise, t, schedule), velocity)
    flow = flow_schedule(1000)
    velocity = prediction_target("flow", clean, noise, t, flow)
    x_t = flow.add(clean, noise, t)
    back = x_t - flow.noise[t][:, None, None, None] * velocity  # one Euler step to t = 0
    torch.testing.assert_close(back, clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "sample"])
def test_a_perfect_prediction_has_no_error_and_any_other_its_mean_square(kind: Any) -> None:
    clean, noise, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([10, 900])
    schedule = flow_schedule(1000)
    target = prediction_target(kind, clean, noise, t, schedule)
    assert denoising_error(Prediction(target, kind), clean, noise, t, schedule).tolist() == [0, 0]
    off = denoising_error(
        Prediction(target + torch.tensor([2.0, 3.0])[:, None, None, None], kind), clean, noise, t, schedule
    )
    torch.testing.assert_close(off, torch.tensor([4.0, 9.0]).double(), atol=1e-5, rtol=1e-5)


def test_the_recorded_errors_are_found(score: DenoisingError, latents: Tensor, captions: Condition) -> None:
    found = score(latents, KEYS, captions, [5, 500])
    torch.testing.assert_close(found, torch.tensor(RECORDED).double(), atol=1e-5, rtol=0)


def test_it_is_a_plain_loop_over_diffusers_own_parts(
    pipeline: Any, score: DenoisingError, latents: Tensor, captions: Condition
) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    timesteps = [5, 999]
    found = score(latents, KEYS, captions, timesteps)
    assert found.shape == (2, 3, 2)
    with torch.no_grad():
        for row, key in enumerate(KEYS):
            for column, t in enumerate(timesteps):
                noise = noise_for(3, key, t, tuple(latents.shape[1:]))[None]
                noised = scheduler.add_noise(latents[row : row + 1], noise, torch.tensor([t]))
                for candidate, caption in enumerate(CAPTIONS):
                    states, _ = pipeline.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=False)
                    error = (pipeline.unet(noised, t, states).sample - noise).square().mean()
                    assert float(found[row, candidate, column]) == pytest.approx(float(error), rel=1e-4)


def test_a_class_can_be_a_candidate(tmp_path: Path) -> None:
    score = DenoisingError.from_pretrained(str(dit.tiny(tmp_path / "dit")), device="cpu")
    latents = score.encode_images(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    classes = {name: x.expand(2, -1) for name, x in score.encode_conditions([0, 3, None]).items()}
    found = score(latents, KEYS, classes, [500])
    assert found.shape == (2, 3, 1) and found.isfinite().all() and len(found[0].unique()) == 3


def test_images_are_the_scaled_modes_of_the_autoencoder(pipeline: Any, score: DenoisingError) -> None:
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = pipeline.vae.encode(images * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(score.encode_images(images), expected)


def test_an_error_does_not_depend_on_the_batch(
    score: DenoisingError, open_score: Callable[..., DenoisingError], latents: Tensor, captions: Condition
) -> None:
    whole = score(latents, KEYS, captions, [50, 500])
    alone = score(latents[1:], KEYS[1:], {name: x[1:, 2:] for name, x in captions.items()}, [500])
    torch.testing.assert_close(alone[0, 0, 0], whole[1, 2, 1], rtol=1e-4, atol=1e-5)
    swapped = score(latents.flip(0), KEYS[::-1], {name: x.flip(1) for name, x in captions.items()}, [500, 50])
    torch.testing.assert_close(swapped.flip(0, 1, 2), whole, rtol=1e-4, atol=1e-5)
    few = DenoisingError(score.backbone, score.spec, seed=3, rows=4)  # passes that end inside an image
    torch.testing.assert_close(few(latents, KEYS, captions, [50, 500]), whole, rtol=1e-4, atol=1e-5)


def test_the_noise_is_that_of_seed_and_key(
    score: DenoisingError, open_score: Callable[..., DenoisingError], latents: Tensor, captions: Condition
) -> None:
    whole = score(latents, KEYS, captions, [500])
    assert torch.equal(whole, score(latents, KEYS, captions, [500]))
    assert not torch.allclose(whole, score(latents, ["a", "c"], captions, [500]))
    assert not torch.allclose(whole, open_score(seed=4)(latents, KEYS, captions, [500]))


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_outside_the_grid_is_refused(
    t: int, score: DenoisingError, latents: Tensor, captions: Condition
) -> None:
    with pytest.raises(BadTimestep, match=rf"t={t} (.|\n)*0\.\.999"):
        score(latents, KEYS, captions, [500, t])


def test_what_a_model_predicts_decides_its_error(tmp_path: Path) -> None:
    """One network under three labels: its output is compared with three targets."""
    errors = []
    for name in ("epsilon", "v_prediction", "sample"):
        path = sd_unet.tiny(tmp_path / name, channels=(16,), prediction=name)
        score = DenoisingError.from_pretrained(str(path), device="cpu")
        latents = score.encode_images(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        captions = {name: x[None] for name, x in score.encode_conditions([""]).items()}
        errors.append(float(score(latents, ["a"], captions, [500])))
    assert len(set(errors)) == 3


def test_a_backbone_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="'pixels'.* clean images"):
        DenoisingError.from_pretrained("pixels", device="cpu")


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_a_shipped_model_scores_alike_in_any_batch_and_order_of_candidates(rows: int) -> None:
    score = DenoisingError.from_pretrained("emoji-sd", device="cpu", seed=1)
    latents = torch.randn(3, *score.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    captions = [f"noto emoji, {name}" for name in ("cat", "dog", "rocket", "pizza")]
    encoded, keys = score.encode_conditions(captions), ["a", "b", "c"]
    given = {name: values.expand(3, *values.shape) for name, values in encoded.items()}
    plain = score(latents, keys, given, [200, 700])
    score.rows = rows
    order = torch.tensor([2, 0, 3, 1])
    moved = score(latents, keys, {name: values[:, order] for name, values in given.items()}, [700, 200])
    torch.testing.assert_close(moved.flip(2), plain[:, order], atol=1e-6, rtol=1e-6)
    alone = score(latents[1:2], keys[1:2], {name: values[1:2] for name, values in given.items()}, [200, 700])
    torch.testing.assert_close(alone, plain[1:2], atol=1e-6, rtol=1e-6)
    assert (plain.std(1) > 1e-4).all()  # candidates differ by more than that
