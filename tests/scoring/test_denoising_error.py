import pytest
import torch

from diffprobe.core.errors import BadTimestep, WeightsMismatch
from diffprobe.core.rng import noise_for
from diffprobe.scoring import denoising_error
from diffprobe.scoring.denoising_error import DenoisingError, tenths

CAPTIONS = ["noto emoji, red circle", "twemoji emoji, blue square", ""]
KEYS = ["a", "b"]


@pytest.fixture(scope="module")
def pipeline(tiny_sd):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)


@pytest.fixture(scope="module")
def score(pipeline):
    return DenoisingError(pipeline, seed=3)


@pytest.fixture(scope="module")
def latents(score):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return score.encode_images(images)


@pytest.fixture(scope="module")
def text(score):
    """All three captions as candidates of both images."""
    return score.encode_captions(CAPTIONS).expand(2, -1, -1, -1)


def test_it_is_a_plain_loop_over_diffusers_own_parts(pipeline, score, latents, text):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    timesteps = [5, 999]
    found = score(latents, KEYS, text, timesteps)
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


def test_images_are_the_scaled_modes_of_the_autoencoder(pipeline, score):
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = pipeline.vae.encode(images * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert torch.equal(score.encode_images(images), expected)


def test_pooled_states_are_means_over_the_words_and_the_end(pipeline, score):
    pooled = score.encode_pooled(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        tokens = pipeline.tokenizer([caption], return_tensors="pt").input_ids  # not padded
        with torch.no_grad():
            states = pipeline.text_encoder(tokens).last_hidden_state[0, 1:]
        torch.testing.assert_close(pooled[row], states.mean(0), rtol=1e-4, atol=1e-5)


def test_an_error_does_not_depend_on_company(score, latents, text, monkeypatch):
    whole = score(latents, KEYS, text, [50, 500])
    alone = score(latents[1:], KEYS[1:], text[1:, 2:], [500])
    torch.testing.assert_close(alone[0, 0, 0], whole[1, 2, 1], rtol=1e-4, atol=1e-5)
    swapped = score(latents.flip(0), KEYS[::-1], text.flip(1), [500, 50])
    torch.testing.assert_close(swapped.flip(0, 1, 2), whole, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(denoising_error, "ROWS_A_PASS", 4)  # passes that end inside an image
    torch.testing.assert_close(score(latents, KEYS, text, [50, 500]), whole, rtol=1e-4, atol=1e-5)


def test_the_noise_is_that_of_seed_and_key(pipeline, score, latents, text):
    whole = score(latents, KEYS, text, [500])
    assert torch.equal(whole, score(latents, KEYS, text, [500]))
    assert not torch.allclose(whole, score(latents, ["a", "c"], text, [500])[:, :])
    assert not torch.allclose(whole, DenoisingError(pipeline, seed=4)(latents, KEYS, text, [500]))


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_outside_the_grid_is_refused(score, latents, text, t):
    with pytest.raises(BadTimestep, match=f"t={t} is outside 0..999"):
        score(latents, KEYS, text, [500, t])


def test_only_epsilon_is_scored(pipeline):
    import copy

    other = copy.copy(pipeline)
    other.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    with pytest.raises(WeightsMismatch, match="v_prediction"):
        DenoisingError(other)


def test_tenths_lie_in_the_middle_of_equal_parts(score):
    assert score.n_timesteps == 1000
    assert tenths(10) == list(range(10))
    assert [t // 100 for t in tenths(1000)] == list(range(10))
