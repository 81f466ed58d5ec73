"""One part of a checkpoint alone: the VAE and the text encoder, held against the parts themselves."""

import json
import shutil

import pytest
import torch
from transformers import T5EncoderModel, T5TokenizerFast

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit, flux, kandinsky, pixart, sdxl, unet2d
from diffprobe.backbones.locate import locate
from diffprobe.backbones.parts import SIDE, why_without
from diffprobe.backbones.plan import make_plan
from diffprobe.backbones.tokenizer_files import load_tokenizer
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownTap, WeightsMissing

KEYS = ("a/0", "a/1", "b.2", "b.3", "c")
CAPTIONS = ["a red round shape", "a green square", "", "a red round shape", "blue"]
LATENTS, TEXT = "latents@t0:empty:mean", "text@t0:caption:mean"


def of(path, part="vae", **settings):
    tap = {"vae": "latents", "text_encoder": "text"}[part]
    chosen = {"taps": [tap], "timesteps": [0], "device": "cpu", "part": part, **settings}
    return DiffusionFeatures.from_pretrained(str(path), **chosen)


def test_latents_are_those_that_the_denoiser_is_given_noised(load, tiny_sd, images):
    features = of(tiny_sd)
    clean = load().encode(images)
    assert features.widths == {LATENTS: clean[0].numel()} and max(clean.shape[2:]) <= SIDE
    torch.testing.assert_close(features(images, keys=KEYS)[LATENTS], clean.flatten(1), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"pool": "max"}, {"draws": 3, "seed": 9}, {"max_rows_per_pass": 2}])
def test_neither_pooling_nor_noise_changes_latents(settings, tiny_sd, images):
    plain = of(tiny_sd)(images, keys=KEYS)[LATENTS]
    (other,) = of(tiny_sd, **settings)(images, keys=KEYS).values()
    torch.testing.assert_close(other, plain)


def test_large_latents_are_reduced_by_area(load, tiny_sd):
    images = torch.rand(2, 3, 64, 64)
    clean = load(resolution=64).encode(images)
    assert clean.shape[2:] == (32, 32)
    expected = clean.reshape(2, -1, SIDE, 2, SIDE, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(of(tiny_sd, resolution=64)(images, keys=["a", "b"])[LATENTS], expected)


def test_texts_are_averaged_over_their_tokens_and_the_image_is_not_read(load, tiny_sd, images):
    features = of(tiny_sd, "text_encoder", condition="caption")
    found = features(images, keys=KEYS, captions=CAPTIONS)[TEXT]
    encoder = load()._backbone.texts["text_encoder"]
    torch.testing.assert_close(found, encoder.mean_states(CAPTIONS))
    assert torch.equal(found[0], found[3]) and not torch.equal(found[0], found[1])
    other = features(images.flip(0), keys=[*reversed(KEYS)], captions=CAPTIONS)[TEXT]
    torch.testing.assert_close(other, found)


def test_several_text_encoders_stand_side_by_side(tmp_path):
    features = of(sdxl.tiny(tmp_path / "sdxl"), "text_encoder", condition="caption")
    width = features.widths[TEXT]
    found = features(torch.rand(2, 3, *[features.resolution] * 2), keys=["a", "b"], captions=["red", "blue"])[TEXT]
    assert found.shape == (2, width) and width > 32 and bool(found.isfinite().all())


@pytest.mark.parametrize(("write", "encoders"), [(pixart.tiny, ["text_encoder"]), (flux.tiny, ["clip", "t5"])])
def test_t5_is_read_as_transformers_runs_it(write, encoders, tmp_path):
    """Mean states over the tokens of a text alone: neither padding nor other texts of the batch matter."""
    path = write(tmp_path / "model")
    features = of(path, "text_encoder", condition="caption")
    texts = ["red", "a much longer text of a blue circle"]
    images = torch.rand(2, 3, *[features.resolution] * 2)
    found = features(images, keys=["a", "b"], captions=texts)[TEXT]
    alone = [features(images[:1], keys=["a"], captions=[text])[TEXT][0] for text in texts]
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    folder = "text_encoder_2" if len(encoders) == 2 else "text_encoder"
    tokens = load_tokenizer(T5TokenizerFast, path / folder.replace("text_encoder", "tokenizer"))
    t5 = T5EncoderModel.from_pretrained(path / folder, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = [t5(tokens([text], return_tensors="pt").input_ids)[0][0].mean(0) for text in texts]
    width = len(plain[0])
    assert torch.allclose(found[:, -width:], torch.stack(plain), atol=1e-5)
    assert features.widths[TEXT] > width if len(encoders) == 2 else features.widths[TEXT] == width


def test_a_fixed_text_frees_the_encoder(tiny_sd, images):
    features = of(tiny_sd, "text_encoder", condition="prompt", prompt="red")
    first = features(images, keys=KEYS)
    assert features._backbone.texts == {}
    for name, values in features(images, keys=KEYS).items():
        assert torch.equal(values, first[name]) and torch.equal(values[0], values[-1])


@pytest.mark.parametrize(
    ("write", "part", "reason"),
    [
        (unet2d.tiny, "vae", "has no VAE"),
        (unet2d.tiny, "text_encoder", "has no text encoder"),
        (dit.tiny, "text_encoder", "has no text encoder"),
        (kandinsky.tiny, "text_encoder", "has no text encoder"),
    ],
)
def test_a_family_without_the_part_is_refused(write, part, reason, tmp_path):
    path = write(tmp_path / "model")
    assert reason in str(why_without(part, locate(str(path))))
    with pytest.raises(ConfigError, match=rf"backbone\.part={part}: .*{reason}(.|\n)*part=denoiser"):
        of(path, part)


def test_the_pixels_have_no_parts():
    for part, reason in (("vae", "has no VAE"), ("text_encoder", "has no text encoder")):
        with pytest.raises(ConfigError, match=f"'pixels' {reason}"):
            of("pixels", part)


def test_vaes_of_other_families_are_read(tmp_path):
    features = of(dit.tiny(tmp_path / "dit"))
    images = torch.rand(2, 3, *[features.resolution] * 2)
    assert features(images, keys=["a", "b"])[LATENTS].shape == (2, features.widths[LATENTS])


def test_what_a_part_cannot_be_asked_is_refused(tiny_sd):
    with pytest.raises(BadTimestep, match="only 0"):
        of(tiny_sd, timesteps=[100])
    with pytest.raises(UnknownTap, match="latents"):
        of(tiny_sd, taps=["mid_block"])
    with pytest.raises(ConfigError, match="condition.*allowed: empty|allowed: empty"):
        of(tiny_sd, condition="caption")
    with pytest.raises(ConfigError, match="random_weights, clean_input with part=vae"):
        of(tiny_sd, random_weights=True, clean_input=True)


def fingerprint(path, **backbone):
    taps = {"vae": "latents", "text_encoder": "text"}.get(backbone.get("part", ""), "mid_block")
    plan = make_plan(
        BackboneConfig(path=str(path), device="cpu", **backbone), FeaturesConfig(taps=(taps,), timesteps=(0,))
    )
    return plan.fingerprint


def test_a_part_is_identified_by_its_own_weights_alone(tiny_sd, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sd, copy)
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dropout": 0.5}))
    assert fingerprint(copy)["weights"] != fingerprint(tiny_sd)["weights"]
    for part in ("vae", "text_encoder"):
        assert fingerprint(copy, part=part) == fingerprint(tiny_sd, part=part)
    assert set(fingerprint(tiny_sd, part="vae")["weights"]) == {"vae"}
    assert set(fingerprint(tiny_sd, part="text_encoder")["weights"]) == {"text_encoder", "tokenizer"}


def test_a_part_without_weights_is_named_and_others_are_not_needed(tiny_sd, tmp_path, images):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sd, copy)
    for file in (copy / "unet").glob("*.safetensors"):
        file.unlink()
    assert of(copy)(images, keys=KEYS)[LATENTS].shape[0] == 5
    for file in (copy / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(WeightsMissing, match="vae"):
        of(copy)
    with pytest.raises(WeightsMissing, match="vae"):
        fingerprint(copy, part="vae")
