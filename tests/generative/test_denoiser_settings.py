"""Settings of denoisers: which forward process a run has, and what has no effect on a flow."""

import dataclasses

import pytest

from diffprobe.config.compose import load
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.generative.architectures import BetaSchedule, DenoiserShape
from diffprobe.generative.denoiser_settings import TEXT_KEYS, DenoiserSettings
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.objectives.base import ObjectiveConfig
from diffprobe.generative.regularizers.base import RegularizerConfig

FLOW = DenoiserSettings(
    experiment="flow",
    autoencoder="emoji-sd",
    data=DataConfig(path="data"),
    model=DenoiserShape(text_width=16, text_layers=2, text_heads=2),
    transformer=TransformerShape(),
    objective=ObjectiveConfig(name="flow_matching"),
    trainer=TrainerConfig(),
    logger=LoggerConfig(kind="none"),
)


def test_a_record_has_betas_or_none() -> None:
    assert FLOW.noise is None
    assert FLOW.objective.params == {"density": "logit_normal", "mean": 0.0, "std": 1.0, "shift": 1.0}
    plain = dataclasses.replace(FLOW, transformer=None, objective=ObjectiveConfig())
    assert plain.noise == BetaSchedule()
    assert load("scenes/train_denoiser", ["text_encoder=scenes-sd"]).noise.beta_schedule == "squaredcos_cap_v2"


def test_text_keys_are_keys_of_the_shape() -> None:
    assert set(TEXT_KEYS) < {field.name for field in dataclasses.fields(DenoiserShape)}


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"noise": BetaSchedule(beta_end=0.02)}, "noise has no effect with objective=flow_matching"),
        ({"noise": BetaSchedule()}, "noise has no effect with objective=flow_matching"),
        ({"transformer": None}, "objective=flow_matching needs a transformer"),
        ({"objective": ObjectiveConfig()}, "transformer is set, and objective=noise_prediction is not a flow"),
        ({"regularizer": RegularizerConfig(name="cbdm")}, "regularizer.name=cbdm is not defined with objective=flow"),
        ({"text_encoder": "emoji-sd"}, "text_encoder: not offered with transformer"),
        ({"init_from": "emoji-sd", "text_noise": 0.1}, "init_from, text_noise: not offered"),
        (
            {"model": dataclasses.replace(FLOW.model, channels=(8, 16), dropout=0.1)},
            "model.channels, model.dropout: no effect with transformer",
        ),
    ],
)
def test_settings_without_effect_are_refused(changed: dict, facts: str) -> None:
    with pytest.raises(ConfigError, match=facts):
        dataclasses.replace(FLOW, **changed)


def test_the_command_line_reports_them() -> None:
    with pytest.raises(ConfigError, match="noise has no effect"):
        load("scenes/train_flow", ["noise.beta_end=0.02"])
    with pytest.raises(ConfigError, match="needs a transformer"):
        load("scenes/train_denoiser", ["objective=flow_matching", "noise=null"])
