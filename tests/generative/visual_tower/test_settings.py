"""Settings of a run that cannot work are refused before anything is loaded, and the paper's files dry-run."""

import dataclasses

import pytest

from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMissing
from diffprobe.generative.visual_tower.assembly import TinyShape


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompt": "describe the image"}, "<image> 0 times"),
        ({"prompt": "<image><image>"}, "<image> 2 times"),
        ({"backbone": BackboneConfig(path="emoji-sd", part="text_encoder")}, "no tap with a feature map"),
        ({"train": "projectors"}, "random language model has to be trained"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio=1.0"),
        ({"held_out": 1}, "held_out=1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"language_model": "x", "clip": "y"}, "tiny has no effect"),
        (
            {"language_model": "x", "train": "projectors", "language_model_alone": True},
            "the language model is not trained",
        ),
    ],
)
def test_settings_without_effect_or_sense_are_refused(make_config, changes, match) -> None:
    with pytest.raises(ConfigError, match=match):
        make_config(**changes)


def test_towers_of_different_numbers_of_tokens_are_refused(make_config) -> None:
    make_config().require_weights()
    with pytest.raises(ConfigError, match=r"4 patches.*16 tokens"):
        make_config(tap="up_ft1").require_weights()
    with pytest.raises(ConfigError, match=r"64 patches.*4 tokens"):
        make_config(tiny=TinyShape(clip_resolution=64)).require_weights()


def test_several_taps_and_unknown_ones_are_refused(make_config) -> None:
    with pytest.raises(ConfigError, match=r"names 3 taps: up_blocks.0, up_blocks.1"):
        make_config(tap="up_blocks.*").require_weights()
    with pytest.raises(UnknownTap):
        make_config(tap="up_blocks.7").require_weights()


def test_a_length_without_room_for_a_caption_is_refused(make_config) -> None:
    with pytest.raises(ConfigError, match="no room for a caption after 8 visual tokens"):
        make_config(max_length=9).require_weights()


def test_missing_parts_are_named_before_anything_is_loaded(make_config) -> None:
    with pytest.raises(WeightsMissing, match="clip=nobody/clip"):
        make_config(clip="nobody/clip").require_weights()
    with pytest.raises(WeightsMissing, match="language_model=nobody/llama"):
        make_config(language_model="nobody/llama", tiny=make_config().tiny).require_weights()


def test_inputs_are_digested(make_config, tiny_parts) -> None:
    tiny = make_config().input_digests()
    parts = {name: str(folder) for name, folder in tiny_parts.items()}
    whole = make_config(**parts, tiny=TinyShape()).input_digests()
    assert set(tiny) == {"backbone"} and set(whole) == {"backbone", "language_model", "clip"}
    assert make_config(timestep=100).input_digests()["backbone"] != tiny["backbone"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava_pretrain", {"train": "projectors", "batch": 16, "epochs": 1, "rate": 2e-3}),
        ("llava_finetune", {"train": "all", "batch": 4, "epochs": 3, "rate": 2e-5}),
    ],
)
def test_the_papers_files_have_its_settings_and_dry_run_on_tiny_checkpoints(
    name, expected, tiny_parts, tiny_shards, capsys, tmp_path
) -> None:
    from diffprobe.cli.main import main
    from diffprobe.runs.experiment import load_experiment

    config = load_experiment(f"revelio/{name}")
    assert (config.tap, config.timestep, config.resolution, config.diffusion_width) == ("up_ft1", 25, 512, 1024)
    assert (config.train, config.data.batch_size, config.accumulation) == (expected["train"], expected["batch"], 4)
    assert (config.trainer.max_epochs, config.trainer.learning_rate) == (expected["epochs"], expected["rate"])
    assert (config.max_length, config.warmup_ratio, config.trainer.precision) == (2048, 0.03, "bf16-mixed")
    assert config.backbone.part == "denoiser" and not dataclasses.asdict(config)["language_model_alone"]
    settings = [
        f"experiment=revelio/{name}",
        "backbone=emoji-sd", "tap=up_blocks.0", "resolution=64", f"data.path={tiny_shards}",
        *(f"{part}={folder}" for part, folder in tiny_parts.items()), f"output={tmp_path}",
    ]  # fmt: skip
    assert main(["train", *settings, "--check"]) == 0
    assert "the configuration is valid" in capsys.readouterr().out
