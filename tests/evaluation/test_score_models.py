"""The models of a run: each loaded once, scored by the method of the run, and no LoRA on a control."""

import dataclasses
from pathlib import Path

import pytest

from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.dsd_settings import DsdRule
from diffprobe.evaluation.score import score
from diffprobe.evaluation.score_models import ScoreModels
from diffprobe.evaluation.score_records import RANDOM_DENOISER
from diffprobe.evaluation.score_settings import CandidateRule, GeneratedRule, ScoreConfig, ScoredBackbone
from diffprobe.probes.score.few_shot_match import FewShotRule
from diffprobe.scoring.attention_match import AttentionMatch


@pytest.fixture
def config(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> ScoreConfig:
    return ScoreConfig(
        experiment="tiny/models",
        backbone=ScoredBackbone(path=str(tiny_sd), device="cpu"),
        data=DataConfig(path=str(tiny_shards)),
        candidates=CandidateRule(n=3),
        n_timesteps=2,
        group_by="colour",
        output=str(tmp_path),
        method="dsd",
    )


def test_model_control_and_every_set_of_noise_have_the_method(config: ScoreConfig) -> None:
    models = ScoreModels(config, "digest")
    random, digest, seed = models.controls[RANDOM_DENOISER]
    scores = [models.own, models.with_noise(0), models.with_noise(1), random]
    assert all(isinstance(one, AttentionMatch) for one in scores)
    assert models.with_noise(0).seed == models.own.seed != models.with_noise(1).seed
    assert models.with_noise(1).backbone is models.own.backbone is not random.backbone
    assert (digest, seed) == ("digest", config.seed)


def test_a_lora_is_a_fact_of_the_model_and_of_no_control(config: ScoreConfig) -> None:
    models = ScoreModels(config, "digest")
    random = models.controls[RANDOM_DENOISER][0]
    before = models.facts(models.own)
    assert before == models.facts(random)
    models.lora = LoraAdapters(models.own.backbone.denoiser, rank=2, seed=0)
    assert models.facts(models.with_noise(1))["lora"] == models.lora.digest and models.facts(random) == before
    with models.lora.disabled():
        assert models.facts(models.own) == before


def test_methods_that_do_not_go_together_are_refused(config: ScoreConfig) -> None:
    few = DsdRule(few_shot=FewShotRule(images=4))
    with pytest.raises(ConfigError, match="text_free_model"):
        dataclasses.replace(config, text_free_model="other")
    with pytest.raises(ConfigError, match=r"generated\.steps"):
        dataclasses.replace(config, dsd=few, generated=GeneratedRule(steps=4))
    with pytest.raises(ConfigError, match="2 processes"):
        score(dataclasses.replace(config, dsd=few), process=(0, 2))
