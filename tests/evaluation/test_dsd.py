"""`diffprobe score method=dsd` on tiny checkpoints, from images to a record."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from diffprobe.backbones.families import sd3, unet2d
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.core.result import RunResult, read_result
from diffprobe.evaluation.dsd import ZERO_SHOT, few_of_groups, require_other_groups
from diffprobe.evaluation.dsd_settings import DsdRule
from diffprobe.evaluation.score import score
from diffprobe.evaluation.score_settings import CandidateRule, ScoreConfig, ScoredBackbone
from diffprobe.probes.score.few_shot_match import FewShotRule
from tests.evaluation.score_world import encoded


@pytest.fixture
def config(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> ScoreConfig:
    return ScoreConfig(
        experiment="tiny/dsd",
        backbone=ScoredBackbone(path=str(tiny_sd), device="cpu"),
        data=DataConfig(path=str(tiny_shards)),
        candidates=CandidateRule(n=3),
        n_timesteps=2,
        random_denoiser=False,
        group_by="colour",
        output=str(tmp_path),
        method="dsd",
    )


def run(config: ScoreConfig, **keys: Any) -> RunResult:
    return read_result(score(dataclasses.replace(config, **keys)))


@pytest.mark.slow
def test_zero_attention_weight_gives_the_record_of_the_diffusion_classifier(config: ScoreConfig) -> None:
    (ours,) = run(config, dsd=DsdRule(attention_weight=0.0)).metrics
    (plain,) = run(config, method="diffusion_classifier").metrics
    assert ours == plain


@pytest.mark.slow
def test_errors_of_another_method_are_not_read(config: ScoreConfig) -> None:
    folders = {
        str(path.parent.relative_to(config.output))
        for rule in (DsdRule(), DsdRule(heads=(0,)), DsdRule(error="norm"))
        for path in score(dataclasses.replace(config, dsd=rule)).parent.parent.rglob("*.safetensors")
    }
    assert len(folders) == 3 * 2  # three rules, two sets of noise


def test_a_model_without_a_text_is_refused(config: ScoreConfig, tmp_path: Path) -> None:
    plain = ScoredBackbone(path=str(unet2d.tiny(tmp_path / "plain")), device="cpu")
    with pytest.raises(ConfigError, match="no attention from the image to a text"):
        run(config, backbone=plain)


def test_joint_attention_scores_captions(config: ScoreConfig, tmp_path: Path) -> None:
    flow = ScoredBackbone(path=str(sd3.tiny(tmp_path / "sd3")), device="cpu")
    (record,) = run(config, backbone=flow).metrics
    assert 0 <= record.value <= 1


def test_texts_too_long_or_alike_and_a_single_candidate_are_refused(config: ScoreConfig) -> None:
    classes = CandidateRule(kind="classes", attribute="colour", template="{}")
    with pytest.raises(ConfigError, match="tokens"):
        run(config, candidates=dataclasses.replace(classes, template="a " * 100 + "{}"))
    with pytest.raises(ConfigError, match="candidates.n"):
        CandidateRule(n=1)


@pytest.mark.slow
def test_few_shot_training_records_the_score_without_it_and_is_not_repeated(config: ScoreConfig) -> None:
    rule = DsdRule(error="norm", few_shot=FewShotRule(images=4, steps=5, rank=2, warmup=1, learning_rate=0.05))
    (record,) = run(config, dsd=rule, random_denoiser=True).metrics
    assert {ZERO_SHOT, "random_denoiser"} <= set(record.controls) and record.detail["few_shot_images"] == 4
    (lora,) = Path(config.output).rglob("few-shot-*.safetensors")
    assert record.detail["lora"] == lora.name
    written = lora.stat().st_mtime_ns
    (again,) = run(config, dsd=rule, random_denoiser=True).metrics
    assert again == record and lora.stat().st_mtime_ns == written
    (zero,) = run(config, dsd=DsdRule(error="norm")).metrics
    assert zero.detail["by_noise_set"][0] == record.controls[ZERO_SHOT]


def test_few_images_are_of_different_groups_and_of_none_that_is_scored() -> None:
    world = encoded()
    chosen = few_of_groups(world, 5, seed=0)
    assert len(set(chosen.families)) == 5 and chosen.table.keys == few_of_groups(world, 5, seed=0).table.keys
    assert len(few_of_groups(world, 7, seed=0).table) == 7
    with pytest.raises(SplitLeak, match="5 groups"):
        require_other_groups(chosen, world, "shape")
    with pytest.raises(SplitLeak):
        require_other_groups(chosen, chosen, None)
