from typing import Any

import pytest

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.dsd_settings import DsdRule
from diffprobe.evaluation.score_settings import ScoreConfig, ScoredBackbone, WeightRule


def config(**keys: Any) -> ScoreConfig:
    return ScoreConfig(experiment="x", backbone=ScoredBackbone(path="emoji-sd"), data=DataConfig(path="emoji"), **keys)


def test_settings_of_dsd_need_its_method() -> None:
    assert config(method="dsd", dsd=DsdRule(error="norm")).dsd.error == "norm"
    with pytest.raises(ConfigError, match="method=diffusion_classifier"):
        config(dsd=DsdRule(error="norm"))


def test_a_loss_that_would_scale_the_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights.loss=noise"):
        config(method="dsd", weights=WeightRule(loss="noise"))
    assert config(method="dsd", weights=WeightRule(kind="learned")).weights.kind == "learned"
