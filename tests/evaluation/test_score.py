"""`score` on tiny checkpoints of several families: the whole way from images to a record, and again after a kill."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.backbones.families import sd3
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation import score as score_module
from diffprobe.evaluation import score_store
from diffprobe.evaluation.score import SCORES, score, share_of_groups
from diffprobe.evaluation.score_settings import (
    CandidateRule,
    GeneratedRule,
    ScoreConfig,
    ScoredBackbone,
    WeightRule,
)
from diffprobe.probes.score.staged_errors import Stage
from tests.evaluation.score_world import encoded


@pytest.fixture
def config(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> ScoreConfig:
    return ScoreConfig(
        experiment="tiny/score",
        backbone=ScoredBackbone(path=str(tiny_sd), device="cpu"),
        data=DataConfig(path=str(tiny_shards)),
        candidates=CandidateRule(n=3),
        n_timesteps=3,
        stages=(Stage(n_timesteps=1, kept=2),),
        regression=RegressionRule(images=16),
        group_by="colour",
        chunk=3,
        output=str(tmp_path),
    )


def changed(config: ScoreConfig, **keys: Any) -> ScoreConfig:
    return dataclasses.replace(config, **keys)


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }


@pytest.mark.slow
def test_a_record_has_all_controls_and_its_cost(config: ScoreConfig) -> None:
    result = read_result(score(config))
    (record,) = result.metrics
    assert (result.kind, record.name, record.n, record.split) == ("score", "caption_of_3_accuracy", 4, "test")
    controls = {"chance", "shuffled_positives", "random_denoiser", "regression_on_words", "regression_on_text_encoder"}
    assert set(record.controls) == controls
    assert record.detail["passes_per_image"] == 3 + 2 * 2 and "output" not in result.config


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_bytes(
    config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, regression=RegressionRule())
    whole = score(changed(config, output=str(tmp_path / "whole")))
    broken, write, written = changed(config, output=str(tmp_path / "broken")), score_store._write, []

    def stop(path: Path, errors: torch.Tensor) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, errors)

    monkeypatch.setattr(score_store, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        score(broken)
    monkeypatch.setattr(score_store, "_write", write)
    again = score(broken)
    assert files(again.parents[1] / SCORES) == files(whole.parents[1] / SCORES)
    assert len(files(whole.parents[1])) == 6
    assert read_result(again).metrics == read_result(whole).metrics


def test_a_flow_model_retrieves_both_ways_with_the_noise_loss(config: ScoreConfig, tmp_path: Path) -> None:
    flow = changed(
        config,
        backbone=ScoredBackbone(path=str(sd3.tiny(tmp_path / "sd3")), device="cpu"),
        candidates=CandidateRule(kind="retrieval", n=3), stages=(), prior_correction=True, random_denoiser=False,
        regression=RegressionRule(), n_timesteps=2, weights=WeightRule(loss="noise"),
    )  # fmt: skip
    (way, back) = read_result(score(flow)).metrics
    assert (way.name, back.name) == ("image_to_text_r1", "text_to_image_r1")
    assert way.detail["weights"] == pytest.approx([0.1, 0.9])  # (1 - s)^2 at s = 0.75 and 0.25


@pytest.mark.slow
def test_two_processes_are_one(config: ScoreConfig, tmp_path: Path) -> None:
    config = changed(config, chunk=1)
    one = score(changed(config, output=str(tmp_path / "one")))
    two = changed(config, output=str(tmp_path / "two"))
    assert score(two, process=(1, 2)) is None and not list((tmp_path / "two").rglob("result.json"))
    last = score(two, process=(0, 2))
    assert one is not None and last is not None
    assert files(last.parents[1] / SCORES) == files(one.parents[1] / SCORES)
    assert read_result(last).metrics == read_result(one).metrics
    assert last.relative_to(tmp_path / "two") == one.relative_to(tmp_path / "one")


@pytest.mark.slow
def test_processes_that_overtake_each_other_leave_the_result(
    config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, chunk=1)
    one = score(config)
    two, calls, stored = changed(config, output=str(tmp_path / "two")), 0, score_module.stored_errors

    def overtaken(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        errors = stored(*args, **options)  # type: ignore[arg-type]
        if calls == 1:  # process 1 finds the first set of noise whole, and no second one of process 0
            assert errors is None and score(two, process=(1, 2)) is None
        return errors

    monkeypatch.setattr(score_module, "stored_errors", overtaken)
    last = score(two, process=(0, 2))
    assert one is not None and last is not None
    assert files(last.parents[1] / SCORES) == files(one.parents[1] / SCORES)
    assert read_result(last).metrics == read_result(one).metrics


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5])
def test_the_batch_of_the_denoiser_has_no_effect_on_a_record(config: ScoreConfig, tmp_path: Path, rows: int) -> None:
    config = changed(config, regression=RegressionRule(), random_denoiser=False)
    few = dataclasses.replace(config.backbone, max_rows_per_pass=rows)
    (plain,), (other,) = (
        read_result(score(changed(config, backbone=backbone, output=str(tmp_path / str(number))))).metrics
        for number, backbone in enumerate((config.backbone, few))
    )
    assert plain == other


@pytest.mark.slow
def test_runs_that_ask_the_same_share_their_errors(config: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(config, stages=(), regression=RegressionRule(), random_denoiser=False)
    first = score(config)
    monkeypatch.setattr(score_store, "_write", lambda path, errors: pytest.fail("computed again"))
    weighted = score(changed(config, weights=WeightRule(kind="exponential", loss="sample")))
    assert first is not None and weighted is not None and weighted.parent != first.parent


@pytest.mark.slow
def test_the_models_own_images_stand_beside_real_ones(config: ScoreConfig) -> None:
    config = changed(
        config, generated=GeneratedRule(steps=2, guidance=2.0), regression=RegressionRule(), random_denoiser=False
    )
    real, own = read_result(score(config)).metrics
    assert own.name == f"generated_{real.name}" and set(own.controls) == {"chance", "shuffled_positives", "real_images"}
    assert own.controls["real_images"] == pytest.approx(real.detail["by_noise_set"][0])
    assert own.detail["passes_per_image"] == 3 + 2 * 2 + 2 * 2 and "real_images" in own.detail["differences"]


@pytest.mark.slow
def test_a_text_free_model_is_a_control(config: ScoreConfig, tmp_path: Path) -> None:
    config = changed(config, regression=RegressionRule(), random_denoiser=False)
    same = read_result(score(changed(config, text_free_model=config.backbone.path))).metrics[0]
    assert same.controls["text_free_model"] == pytest.approx(same.detail["by_noise_set"][0])  # here it is the model
    with pytest.raises(ConfigError, match="prediction is flow, that of the model epsilon"):
        score(changed(config, text_free_model=str(sd3.tiny(tmp_path / "sd3"))))


def test_images_of_a_set_are_asked_both_ways(config: ScoreConfig) -> None:
    sets = CandidateRule(kind="sets", attribute="colour")
    config = changed(config, candidates=sets, stages=(), regression=RegressionRule(), group_by="colour")
    records = {record.name: record for record in read_result(score(config)).metrics}
    ways = {"set_image_to_text_r1", "set_text_to_image_r1", "set_text_score", "set_image_score", "set_group_score"}
    assert set(records) == ways  # of four images two have the same colour
    assert {(record.n, record.detail["left_out"]) for record in records.values()} == {(2, 2)}
    assert all(record.detail["passes_per_image"] == 3 * 3 for record in records.values())  # and the empty text


@pytest.mark.slow
def test_weights_are_learned_before_anything_is_scored(config: ScoreConfig) -> None:
    learned = changed(
        config, weights=WeightRule(kind="learned", fraction=1.0), candidates=CandidateRule(n=2), stages=(),
        random_denoiser=False, regression=RegressionRule(), n_timesteps=4, limit=4, group_by="base",
        backbone=ScoredBackbone(path="emoji-sd", device="cpu"), data=DataConfig(path="emoji", limit=24),
    )  # fmt: skip
    (record,) = read_result(score(learned)).metrics
    weights = record.detail["weights"]
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0 and max(weights) > 0.26  # not uniform


def test_wrong_models_and_names_are_refused(config: ScoreConfig) -> None:
    with pytest.raises(UnknownName, match="tone"):
        score(changed(config, group_by="tone"))
    classes = CandidateRule(kind="classes", attribute="colour", template="{}")
    with pytest.raises(ConfigError, match="tokens"):
        score(changed(config, candidates=dataclasses.replace(classes, template="a " * 100 + "{}"), stages=()))


def test_weights_are_learned_on_whole_groups_of_the_training_split() -> None:
    world = encoded()
    part = share_of_groups(world, 0.05, seed=0)
    assert len(set(part.families)) == 3 and len(part.table) == 12  # three groups are the fewest
    assert all(key.endswith(family) for key, family in zip(part.table.keys, part.families, strict=True))
    assert part.table.keys == share_of_groups(world, 0.05, seed=0).table.keys
    assert len(share_of_groups(world, 1.0, seed=0).table) == 20
    few = share_of_groups(world, 0.05, seed=0, images=5)
    assert len(few.table) == 5 and set(few.table.keys) < set(part.table.keys)
