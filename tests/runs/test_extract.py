"""What a run's control means for the backbone, and the verb's function."""

from dataclasses import replace

import pytest

from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, ProbeConfig, RunConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError
from diffprobe.features.reader import FeatureStore
from diffprobe.runs.extract import backbone_and_features, extract_run


@pytest.fixture
def run_config(tiny_sd, tiny_shards, tmp_path):
    return RunConfig(
        backbone=BackboneConfig(path=str(tiny_sd), device="cpu"),
        data=DataConfig(path=str(tiny_shards)),
        features=FeaturesConfig(taps=("mid_block",), timesteps=(20, 30), draws=2, store=str(tmp_path / "stores")),
        probe=ProbeConfig(kind="classifier", name="linear"),
    )


def test_a_run_without_control_and_one_with_shuffled_labels_read_the_same_features(run_config):
    assert backbone_and_features(run_config) == (run_config.backbone, run_config.features)
    shuffled = replace(run_config, control="shuffled_labels")
    assert backbone_and_features(shuffled) == (run_config.backbone, run_config.features)


def test_random_weights_change_the_backbone_alone(run_config):
    backbone, features = backbone_and_features(replace(run_config, control="random_weights"))
    assert backbone == replace(run_config.backbone, random_weights=True)
    assert features == run_config.features


def test_raw_pixels_have_one_cell_without_noise(run_config):
    backbone, features = backbone_and_features(replace(run_config, control="raw_pixels"))
    assert (backbone.path, backbone.device) == ("pixels", "cpu")
    assert (features.taps, features.timesteps, features.draws) == (("pixels",), (0,), 1)
    assert features.store == run_config.features.store


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("random_weights", ViewsConfig(flip=0.5, n=2, redraw_noise=True)),
        ("raw_pixels", ViewsConfig(flip=0.5, n=2)),
        ("vae_latents", ViewsConfig(flip=0.5, n=2)),
        ("text_encoder", ViewsConfig()),
    ],
)
def test_controls_that_read_images_read_the_views_of_the_run(run_config, control, expected):
    views = ViewsConfig(flip=0.5, n=2, redraw_noise=True)
    run = replace(run_config, features=replace(run_config.features, views=views), control=control)
    assert backbone_and_features(run)[1].views == expected


def test_views_of_noise_alone_are_none_of_the_pixels(run_config):
    views = ViewsConfig(n=2, redraw_noise=True)
    run = replace(run_config, features=replace(run_config.features, views=views), control="raw_pixels")
    assert backbone_and_features(run)[1].views == ViewsConfig()


def test_a_part_of_the_checkpoint_has_one_cell_and_keeps_the_checkpoint(run_config):
    run = replace(
        run_config,
        backbone=replace(run_config.backbone, lora="a.safetensors", clean_input=True, dtype="bfloat16"),
        features=replace(run_config.features, latent_cache="cache"),
        control="vae_latents",
    )
    backbone, features = backbone_and_features(run)
    assert backbone == BackboneConfig(path=run.backbone.path, device="cpu", dtype="bfloat16", part="vae")
    assert (features.taps, features.timesteps, features.condition) == (("latents",), (0,), "empty")
    assert (features.draws, features.latent_cache) == (1, "cache")


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ({}, ("caption", None, "refuse")),
        ({"condition": "prompt", "prompt": "a drawing"}, ("caption", None, "refuse")),
        ({"condition": "caption", "missing": "empty"}, ("caption", None, "empty")),
        ({"condition": "template", "prompt": "a {style}"}, ("template", "a {style}", "refuse")),
    ],
)
def test_the_text_encoder_reads_the_text_of_each_sample(run_config, own, given):
    run = replace(run_config, features=replace(run_config.features, **own), control="text_encoder")
    backbone, features = backbone_and_features(run)
    assert (backbone.part, features.taps) == ("text_encoder", ("text",))
    assert (features.condition, features.prompt, features.missing) == given


def test_the_text_encoder_alone_is_not_read_with_a_lora(run_config):
    lora = replace(run_config, backbone=replace(run_config.backbone, lora="a.safetensors"), control="text_encoder")
    with pytest.raises(ConfigError, match=r"control=text_encoder with lora(.|\n)*backbone.lora=null"):
        backbone_and_features(lora)


def test_latents_are_cached_once_for_the_run_and_its_control(run_config, tmp_path):
    features = replace(run_config.features, latent_cache=str(tmp_path / "cache"))
    for control in ("none", "vae_latents"):
        extract_run(replace(run_config, features=features, control=control), progress=False)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_each_control_gets_a_store_beside_the_others(run_config):
    paths = {
        control: extract_run(replace(run_config, control=control), progress=False) for control in ("none", "raw_pixels")
    }
    assert paths["none"].parent == paths["raw_pixels"].parent
    assert FeatureStore.open(paths["raw_pixels"]).cells == ("pixels@t0:empty:mean",)
    assert FeatureStore.open(paths["none"]).cells == ("mid_block@t20:empty:mean", "mid_block@t30:empty:mean")


def test_a_run_with_live_features_has_no_store(run_config):
    live = replace(run_config, features=replace(run_config.features, source="live"))
    with pytest.raises(ConfigError, match="it needs no store"):
        extract_run(live)
