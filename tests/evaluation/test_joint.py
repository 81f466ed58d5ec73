"""Retrieval and generation of a model of joint training: planted answers, and a trained tiny model as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.result import MetricRecord, StartTime, make_result, read_result
from diffprobe.evaluation.joint import (
    SAMPLES_FILE,
    Retrieval,
    evaluate_joint,
    generation_records,
    inferences,
    matches,
    retrieval_records,
    shifted,
    tasks_of,
)
from diffprobe.evaluation.joint_settings import JointEvaluation
from diffprobe.evaluation.rate_images import scenes_by_role
from diffprobe.generative.scene_reader import SceneReader, load_reader
from diffprobe.probes.caption import CaptionRegressor, diffdis
from diffprobe.shards.scenes.captions import captions_of
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.world import load_world
from diffprobe.training.caption_scores import ScoredSplit

SPEC = load_world()
CONFIG = JointEvaluation(experiment="mine/joint", run="r", n_resamples=100, ddim_steps=2)


def result_of(config: dict[str, Any]) -> Any:
    return make_result(
        run="r/1", experiment="r", kind="train_backbone", config=config, seeds={}, started_at=StartTime.now(),
        artifacts={}, metrics=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("alignment", "tasks"),
    [
        (None, (False, True)),
        ({"weight": 0.0, "generation": True}, (False, True)),
        ({"weight": 0.1, "generation": True}, (True, True)),
        ({"weight": 1.0, "generation": False}, (True, False)),
    ],
)
def test_the_tasks_follow_from_the_settings_of_the_run(alignment: Any, tasks: tuple[bool, bool]) -> None:
    assert tasks_of(result_of({"objective": {}, "alignment": alignment})) == tasks
    assert tasks_of(result_of({"objective": {}})) == (False, True)  # of a version without the key
    for other in ({"alignment": alignment}, {"objective": {}, "transformer": {"layers": 1}}):
        with pytest.raises(ConfigError, match="did not train a U-Net"):
            tasks_of(result_of(other))


def test_no_sample_keeps_its_place_in_a_shifted_order() -> None:
    for n in (2, 3, 50):
        order = shifted(n, torch.Generator().manual_seed(n))
        assert sorted(order.tolist()) == list(range(n)) and not (order == torch.arange(n)).any()


class PlantedHead(torch.nn.Module):
    """Predicts the vector that stands in the features, and by DDIM without guidance its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.inference = diffdis.Config(grid=1), "one_step"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features if self.inference == "one_step" or self.config.guidance else -features


def planted_retrieval(n: int, *, per_caption: int = 1) -> tuple[CaptionRegressor, Retrieval]:
    aligner = CaptionRegressor("diffdis", diffdis.Config(grid=1), 16, 16)
    aligner.net = PlantedHead()
    vectors = torch.randn(n // per_caption, 16, generator=torch.Generator().manual_seed(0))
    caption = torch.arange(n) // per_caption
    split = ScoredSplit(features=vectors[caption] * 2.0, captions=vectors, caption=caption)
    return aligner, Retrieval(split=split, groups=[str(row % 20) for row in range(n)], keys=[str(r) for r in range(n)])


def test_planted_vectors_are_retrieved_and_exchanged_images_are_at_chance() -> None:
    aligner, found = planted_retrieval(200)
    samples: dict[str, dict[str, Any]] = {}
    records = retrieval_records(CONFIG, aligner, found, "test", {}, samples)
    by_name = {(one.target, one.name): one for one in records}
    assert {target for target, _ in by_name} == {"one_step", "one_step_w1", "ddim", "ddim_w1"} == set(samples)
    for way in ("caption", "image"):
        for k in (1, 5, 10):
            for inference in ("one_step", "one_step_w1", "ddim_w1"):
                assert by_name[inference, f"{way}_recall_{k}"].value == 1.0
            worst = by_name["ddim", f"{way}_recall_{k}"]
            assert worst.value == 0.0 and worst.detail["interval"] == [0.0, 0.0] and worst.detail["n_groups"] == 20
            assert worst.controls["chance"] == pytest.approx(k / 200)
            null = by_name["one_step", f"{way}_recall_{k}"].controls["shuffled_images"]
            assert abs(null - k / 200) < 0.04
    assert by_name["ddim_w1", "caption_recall_1"].detail["guidance"] == 1.0
    assert by_name["ddim_w1", "caption_recall_1"].detail["ddim_steps"] == 2
    assert samples["one_step"]["caption_recall_1"] == [1.0] * 200 and len(samples["ddim"]["groups"]) == 200


def test_each_inference_is_measured_with_each_guidance() -> None:
    config = replace(CONFIG, query_guidance=(0.0, 0.5, 2.0))
    assert inferences(config) == [(name, w) for name in ("one_step", "ddim") for w in (0.0, 0.5, 2.0)]


def test_guidance_of_a_head_that_always_had_its_image_is_refused() -> None:
    aligner, found = planted_retrieval(20)
    aligner.net.config = diffdis.Config(grid=1, p_dropout=0.0)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="without an image"):
        retrieval_records(CONFIG, aligner, found, "test", {}, {})


def rendered(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    scenes = scenes_by_role(SPEC, seed, n)
    images = np.concatenate([render(SPEC, found, resolution=64).images for found in scenes.values()])
    return images, [own[0] for found in scenes.values() for own in captions_of(SPEC, found)]


@pytest.mark.slow
def test_rendered_images_match_their_captions_and_others_do_not() -> None:
    reader = load_reader("scenes-reader", SPEC)
    images, prompts = rendered(4, 0)
    real, _ = rendered(4, 1)
    samples: dict[str, dict[str, Any]] = {}
    config = replace(CONFIG, n_per_role=4)

    def records(generated: np.ndarray) -> dict[str, MetricRecord]:
        found = generation_records(
            config, reader, prompts, generated=generated, rendered=images, real=real, detail={"a": 1}, samples=samples
        )
        return {one.name: one for one in found}

    good = records(images)
    for name in ("stated_accuracy", "role_accuracy"):
        assert good[name].value == good[name].controls["rendered"] > 0.95 and good[name].n == 96
        assert good[name].controls["permuted_prompts"] < 0.6
        low, high = good[name].detail["interval"]
        assert low <= good[name].value <= high
        assert np.mean(samples["generated"][name]) == good[name].value
    assert good["role_accuracy"].controls["permuted_prompts"] < 0.15
    assert good["frechet_distance"].value == good["frechet_distance"].controls["rendered"]
    bad = records(np.roll(images, 4, axis=0))  # each role gets the images of another
    assert bad["role_accuracy"].value < 0.05 and bad["stated_accuracy"].value < good["stated_accuracy"].value - 0.3
    assert bad["frechet_distance"].value == pytest.approx(good["frechet_distance"].value)  # no caption enters it
    noise = records(np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8))
    assert noise["frechet_distance"].value > 3 * good["frechet_distance"].value


def test_a_match_is_the_share_of_what_the_caption_states() -> None:
    class Stub:
        spec = SPEC

        def read(self, images: np.ndarray) -> dict[str, np.ndarray]:
            first = {name: np.eye(len(SPEC.names(name)))[np.zeros(len(images), int)] for name in SPEC.values}
            first["size"] = np.eye(len(SPEC.names("size")))[np.ones(len(images), int)]
            return first

    role, others = SPEC.names("role")[0], SPEC.names("role")[1]
    sizes = SPEC.names("size")
    prompts = [f"a {role}", f"a {role}, {sizes[0]} figure", f"a {others}, {sizes[1]} figure"]
    found = matches(Stub(), np.zeros((3, 64, 64, 3), np.uint8), prompts)  # type: ignore[arg-type]
    assert found["stated_accuracy"].tolist() == [1.0, 0.5, 0.5] and found["role_accuracy"].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.slow
def test_the_experiments_are_trained_and_evaluated_at_tiny_size(tmp_path: Path) -> None:
    """From shards to numbers, with the files of experiments/scenes/diffdis_joint, at two steps."""
    from diffusers import AutoencoderKL

    from diffprobe.config.compose import load
    from diffprobe.runs.train_generative import train_generative
    from diffprobe.shards.datasets import scenes

    scenes.build(tmp_path / "scenes", n=400, seed=0)
    SceneReader(SPEC, resolution=32).save(tmp_path / "reader")
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    settings = [
        f"autoencoder={tmp_path / 'vae'}", f"data.path={tmp_path / 'scenes'}", "data.batch_size=8", "data.limit=60",
        "model.channels=[8,16]", "model.cross_attention=[false,true]", "model.heads=2", "model.norm_groups=4",
        "trainer.max_steps=2", "trainer.enable_progress_bar=false", "warmup_steps=1", "trainer.precision=32-true",
        "logger=none", f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    small = {"joint": ["alignment.width=16"], "generation": [], "alignment": ["alignment.width=16"]}
    names: dict[str, set[str]] = {}
    for name, own in small.items():
        path = train_generative(load(f"scenes/diffdis_joint/{name}", [*settings, *own]))
        config = load(
            "scenes/diffdis_joint/evaluate",
            [f"run={path.parent}", f"reader={tmp_path / 'reader'}", "n_per_role=1", "sampling_steps=1", "limit=20",
             "ddim_steps=2", "n_resamples=20", f"output={tmp_path / 'runs'}"],
        )  # fmt: skip
        evaluated = evaluate_joint(config)
        found = read_result(evaluated).metrics
        names[name] = {f"{one.split} {one.name}" for one in found}
        assert found[0].detail["trained"]["passes"] == {
            "forward": name != "alignment",
            "alignment": name != "generation",
        }
        assert all(np.isfinite(one.value) for one in found)
        again = read_result(evaluate_joint(config)).metrics
        assert [one.value for one in again] == [one.value for one in found]
        assert (
            json.loads(evaluated.with_name(SAMPLES_FILE).read_text()).keys()
            == {
                "joint": {"one_step", "one_step_w1", "ddim", "ddim_w1", "generated"},
                "alignment": {"one_step", "one_step_w1", "ddim", "ddim_w1"},
                "generation": {"generated"},
            }[name]
        )
        if name == "generation":
            with pytest.raises(ConfigError, match="nothing is measured"):
                evaluate_joint(replace(config, n_per_role=0))
            with pytest.raises(WeightsMismatch, match=r"32 pixels.*64"):
                evaluate_joint(replace(config, reader="scenes-reader"))
    assert names["joint"] == names["generation"] | names["alignment"]
    assert not names["generation"] & names["alignment"]
