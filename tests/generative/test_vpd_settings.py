"""Settings of VPD: the published choices have the name vpd alone, and a setting without effect is refused."""

import dataclasses
from typing import Any

import pytest

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.generative.vpd_settings import PUBLISHED, VpdSettings

CLASSES = {"ground": (0,), "thing": (1, 2)}


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
        ({"n_test": 1}, "n_test"),
    ],
)
def test_it_refuses_what_has_no_effect_or_no_meaning(changes: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        settings(**changes)


def test_a_limit_of_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_train"):
        dataclasses.replace(settings(), data=DataConfig(path="somewhere", limit=5))
