"""Settings of `diffprobe score` that have no effect or contradict each other are refused."""

from typing import Any

import pytest

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.evaluation.score_settings import (
    CandidateRule,
    GeneratedRule,
    ScoreConfig,
    ScoredBackbone,
    WeightRule,
    passes_per_image,
)
from diffprobe.probes.score.staged_errors import Stage


def config(**keys: Any) -> ScoreConfig:
    return ScoreConfig(experiment="x", backbone=ScoredBackbone(path="emoji-sd"), data=DataConfig(path="emoji"), **keys)


@pytest.mark.parametrize(
    ("keys", "fact"),
    [
        ({"noise_sets": 1}, "noise_sets=1"),
        ({"n_timesteps": 0}, "n_timesteps"),
        ({"stages": (Stage(n_timesteps=40, kept=2),)}, "stages"),
        ({"prior_correction": True}, "prior_correction"),
        ({"candidates": CandidateRule(kind="retrieval"), "stages": (Stage(n_timesteps=4, kept=2),)}, "retrieval"),
        (
            {"candidates": CandidateRule(ranks=(5,)), "stages": (Stage(n_timesteps=4, kept=4),)},
            "candidates.ranks has 5",
        ),
        (
            {
                "candidates": CandidateRule(kind="sets", attribute="pair"),
                "stages": (Stage(n_timesteps=4, kept=2),),
            },
            "sets",
        ),
    ],
)
def test_wrong_settings_are_refused(keys: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        config(**keys)


def test_the_training_split_is_not_scored() -> None:
    with pytest.raises(SplitLeak, match="split=train"):
        config(split="train")
    assert config().scored_split == "test"


@pytest.mark.parametrize(
    "keys",
    [
        {"n": 1},
        {"kind": "classes"},
        {"attribute": "style"},
        {"template": "a {}"},
        {"kind": "matched"},
        {"phrases": {"style": "{}"}},
        {"kind": "classes", "attribute": "style", "template": "no slot"},
        {"kind": "retrieval", "pool": ("val",)},
        {"kind": "classes", "attribute": "style", "ranks": (5,)},
        {"ranks": (1,)},
        {"ranks": (10,)},
        {"most_values": 3},
        {"kind": "classes", "attribute": "style", "most_values": 1},
        {"kind": "sets"},
        {"kind": "sets", "attribute": "pair", "n": 5},
        {"kind": "sets", "attribute": "pair", "template": "a {}"},
    ],
)
def test_wrong_candidates_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="candidates"):
        CandidateRule(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "exponential"},
        {"fraction": 0.1},
        {"images": 9},
        {"kind": "learned", "images": 0},
        {"kind": "learned", "fraction": 0.0},
    ],
)
def test_wrong_weights_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        WeightRule(**keys)


@pytest.mark.parametrize("keys", [{"steps": -1}, {"guidance": 2.0}, {"steps": 5, "guidance": 0.5}])
def test_wrong_rules_of_generation_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="generated"):
        GeneratedRule(**keys)


def test_passes_of_a_generated_image_count_both_branches_of_guidance() -> None:
    assert GeneratedRule().passes == 0 and GeneratedRule(steps=5).passes == 10
    assert GeneratedRule(steps=5, guidance=1.0).passes == 5


def test_passes_are_those_of_the_published_stages() -> None:
    # Diffusion Classifier on CIFAR-10: 50 noises for 10 classes, 500 in all for the best five
    assert passes_per_image(10, 500, (Stage(n_timesteps=50, kept=5),)) == 2750
    assert passes_per_image(3, 10, (Stage(n_timesteps=5, kept=8),)) == 30
