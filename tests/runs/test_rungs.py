"""Which rungs of the ladder apply to a run, and why one is left out."""

from dataclasses import replace

import pytest

from diffprobe.backbones.families import dit, unet2d
from diffprobe.config.controls import LADDER
from diffprobe.core.errors import WeightsMissing
from diffprobe.runs.experiment import load_experiments
from diffprobe.runs.rungs import those_that_apply, why_not
from diffprobe.shards.index import ShardSet


@pytest.fixture
def settings(tiny_sd, tiny_shards, tmp_path):
    return [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "features.taps=[mid_block]",
        "features.timesteps=[20]", f"output={tmp_path}", "probe=linear", "control=ladder",
    ]  # fmt: skip


def ladder(settings, *more):
    """Return the controls of the runs, and the line of each rung that is left out by its control."""
    lines: list[str] = []
    runs = load_experiments(None, [*settings, *more], announce=lines.append)
    assert all(line.startswith("ladder ") and ": left out, " in line for line in lines)
    told = {line.removeprefix("ladder ").partition(":")[0]: line.partition(": left out, ")[2] for line in lines}
    assert set(told).isdisjoint(run.control for run in runs)
    return [run.control for run in runs], told


def test_all_rungs_stand_below_the_run_itself(settings):
    assert ladder(settings) == ([*LADDER, "none"], {})


def test_a_model_of_pixels_has_neither_latents_nor_texts(settings, tmp_path):
    found, told = ladder(settings, f"backbone.path={unet2d.tiny(tmp_path / 'pixel-model')}")
    assert found == ["raw_pixels", "random_weights", "none"]
    assert "has no VAE" in told["vae_latents"] and "has no text encoder" in told["text_encoder"]


def test_a_model_of_classes_has_no_texts(settings, tmp_path):
    found, told = ladder(settings, f"backbone.path={dit.tiny(tmp_path / 'dit')}")
    assert found == ["raw_pixels", "vae_latents", "random_weights", "none"] and list(told) == ["text_encoder"]


def test_a_caption_regressor_reads_the_text_encoder_itself(settings):
    own = ["probe.kind=caption", "probe.name=ridge", "probe.targets=[]", "probe.params={}"]
    found, told = ladder(settings, *own)
    assert found == ["raw_pixels", "vae_latents", "random_weights", "none"]
    assert "vectors of the captions" in told["text_encoder"]


def test_the_pixels_have_no_rungs(settings):
    found, told = ladder(settings, "backbone.path=pixels", "features.taps=[pixels]", "features.timesteps=[0]")
    assert found == ["none"] and list(told) == list(LADDER) and len(set(told.values())) == 1


def test_samples_without_captions_leave_the_texts_out_and_say_how_many(settings, monkeypatch):
    load = ShardSet.load

    def uncaptioned(path, **options):
        shards = load(path, **options)
        kept = tuple(replace(shard, missing={"caption": (shard.n_samples, 0, "first")}) for shard in shards.shards)
        return replace(shards, shards=kept)

    monkeypatch.setattr(ShardSet, "load", uncaptioned)
    found, told = ladder(settings)
    assert found == ["raw_pixels", "vae_latents", "random_weights", "none"]
    assert "caption" in told["text_encoder"] and "16 of 16 samples of split 'train'" in told["text_encoder"]
    own = ["features.condition=caption", "features.missing=empty"]  # the run says what becomes of them
    assert ladder(settings, *own) == ([*LADDER, "none"], {})


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ("backbone.random_weights=true", {"random_weights"}),
        ("backbone.denoiser_weights=other.safetensors", {"random_weights"}),
        ("backbone.lora=a.safetensors", {"random_weights", "text_encoder"}),
    ],
)
def test_a_rung_that_would_be_another_model_is_named_with_the_setting(settings, given, left_out):
    _, told = ladder(settings, given)
    assert set(told) == left_out and given.partition("=")[0] in told["random_weights"]


def test_a_part_read_alone_is_no_rung_of_itself(settings):
    part = ["backbone.part=vae", "features.taps=[latents]", "features.timesteps=[0]"]
    found, told = ladder(settings, *part)
    assert found == ["raw_pixels", "none"] and "backbone.part=vae" in told["vae_latents"]


def test_other_features_are_no_baseline_of_an_autoencoder(settings):
    found, told = ladder(settings, "probe=topk")
    assert found == ["random_weights", "none"] and set(told) == {"raw_pixels", "vae_latents", "text_encoder"}


def test_a_checkpoint_that_is_not_there_is_an_error_and_no_missing_rung(settings, tmp_path):
    with pytest.raises(WeightsMissing, match="nowhere"):
        ladder(settings, f"backbone.path={tmp_path / 'nowhere'}")


def test_seeds_are_not_asked_twice(settings):
    runs = load_experiments(None, [*settings, "seed=[0,1]", "probe=topk"], announce=lambda line: None)
    lines: list[str] = []
    everything = [replace(run, control="raw_pixels") for run in runs]
    assert those_that_apply(everything, lines.append) == [] and len(lines) == 1
    assert why_not(replace(runs[0], control="none")) is None
