"""Settings of VPD: the published choices have the name vpd alone, and a setting without effect is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from diffprobe.cli.main import main
from diffprobe.config.compose import load
from diffprobe.config.schema import DataConfig, LoggerConfig, PublishedConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.generative.vpd_settings import PUBLISHED, VPD, VpdSettings

CLASSES = {"ground": (0,), "thing": (1, 2)}


def number(metric: str) -> PublishedConfig:
    return PublishedConfig(metric=metric, value=0.5, tolerance=0.1, source="a table", provenance="read in a table")


def settings(**changes: Any) -> VpdSettings:
    given = {"task": "segmentation", "classes": CLASSES, **changes}
    return VpdSettings(
        experiment="tiny/vpd", model="scenes-sd", data=DataConfig(path="somewhere"), trainer=TrainerConfig(),
        logger=LoggerConfig(kind="none"), **given,
    )  # fmt: skip


def test_the_default_is_the_published_recipe() -> None:
    config = settings()
    assert config.name == "vpd"
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert (config.timestep, config.add_noise, config.scale_latents, config.gamma) == (1, False, False, 1e-4)
    assert (config.denoiser_rate, config.switch) == (0.1, "finetune")


@pytest.mark.parametrize(
    "change",
    [
        {"timestep": 100},
        {"scale_latents": True},
        {"gamma": 0.1},
        {"attention_maps": False},
        {"taps": ("mid_block",)},
        {"denoiser_rate": 1.0},
    ],
)
def test_any_other_choice_needs_another_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        settings(**change)
    assert settings(**change, recipe="mine").name == "mine"


def test_depth_has_no_attention_maps_as_published() -> None:
    with pytest.raises(ConfigError, match="attention_maps"):
        settings(task="depth", classes={})
    assert settings(task="depth", classes={}, attention_maps=False).name == "vpd"


def test_only_the_fine_tuned_one_has_the_name_of_the_recipe() -> None:
    assert settings(switch="adapter").name == "vpd-adapter"
    assert settings(switch="frozen", controls=("random_weights",)).name == "vpd-frozen"


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"recipe": "vpd-frozen"}, "vpd-"),
        ({"switch": "frozen"}, "controls"),
        ({"controls": ("frozen", "frozen")}, "once"),
        ({"recipe": "mine", "add_noise": True}, "scale_latents"),
        ({"recipe": "mine", "gamma": 0.0}, "gamma"),
        ({"classes": {"ground": (0,)}}, "2 classes"),
        ({"task": "referring"}, "expressions"),
        ({"expressions": {"the hat": "thing"}}, "expressions"),
        ({"max_depth": 3.0}, "max_depth"),
        ({"switch": "adapter", "denoiser_rate": 0.5}, "denoiser_rate"),
        ({"denoiser_rate": 0.0}, "denoiser_rate"),
        ({"prompts": ("a photo",)}, "prompts"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"ignore": (1,)}, "ignore"),
        ({"task": "depth", "classes": {}, "attention_maps": False, "ignore": (9,)}, "ignore"),
        ({"published": number("rmse")}, "miou_pooled"),
        ({"published": number("miou_pooled"), "switch": "adapter"}, "vpd-adapter"),
        ({"published": number("miou_pooled"), "recipe": "mine"}, "mine"),
        ({"n_test": 1}, "n_test"),
    ],
)
def test_it_refuses_what_has_no_effect_or_no_meaning(changes: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        settings(**changes)


def test_a_limit_of_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_train"):
        dataclasses.replace(settings(), data=DataConfig(path="somewhere", limit=5))


@pytest.mark.parametrize("row", ["ade20k", "refcoco", "nyuv2"])
def test_the_presets_of_the_paper_are_the_published_recipe_and_dry_run_offline_with_their_cost(
    row: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = load(f"vpd/{row}", kinds=("train_vpd",))
    assert isinstance(config, VpdSettings) and config.name == VPD and config.published is not None and config.paper
    assert config.published.tolerance > 0 and config.published.provenance.startswith(("read in ", "second hand: "))
    assert main(["train", f"experiment=vpd/{row}", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "with a backward pass" in shown and "GiB" in shown and not list(tmp_path.iterdir())
    assert main(["train", f"experiment=vpd/{row}", "model=no-such-folder", "--check"]) != 0
    assert "no-such-folder" in capsys.readouterr().err


def test_the_published_numbers_of_the_presets_are_those_of_the_paper() -> None:
    found = {row: load(f"vpd/{row}", kinds=("train_vpd",)) for row in ("ade20k", "refcoco", "nyuv2")}
    assert {row: one.published.metric for row, one in found.items()} == {
        "ade20k": "miou_pooled", "refcoco": "oiou", "nyuv2": "rmse"
    }  # fmt: skip
    assert (found["ade20k"].published.value, found["refcoco"].published.value) == (0.537, 0.7346)
    levels_per_metre = found["nyuv2"].max_depth / 10
    assert found["nyuv2"].published.value == pytest.approx(0.254 * levels_per_metre, abs=1e-3)
    classes = found["ade20k"].classes
    assert sorted(classes.values()) == [(value,) for value in range(1, 151)] and found["ade20k"].ignore == (0,)
    assert (classes["wall"], classes["bed"], classes["flag"]) == ((1,), (8,), (150,))
    steps = found["ade20k"].trainer.max_epochs * (found["ade20k"].n_train // found["ade20k"].data.batch_size)
    assert steps >= found["ade20k"].trainer.max_steps == 80_000
