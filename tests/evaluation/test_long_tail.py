"""The long-tail evaluation: rendered images as positive control, images of a wrong class, and a trained tiny model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.result import MetricRecord, StartTime, make_result, read_result, write_result
from diffprobe.evaluation.long_tail import ReadImages, TrainedClasses, evaluate_long_tail, quality_records
from diffprobe.evaluation.long_tail_settings import LongTailEvaluation
from diffprobe.generative.long_tail import ClassesConfig, shots
from diffprobe.generative.scene_reader import SceneReader
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
ROLES = SPEC.names("role")
COUNTS = {role: 2000 - 80 * n for n, role in enumerate(ROLES)}


def run_folder(path, *, counts=COUNTS, classes=None, facts=True):
    detail = {"class_counts": counts, "shots": shots(counts), "passes_per_sample": 2} if facts else {}
    classes = {"attribute": "role", "template": "a {value}"} if classes is None else classes
    result = make_result(
        run="r/1", experiment="r", kind="train_backbone", config={"classes": classes, "trainer": {"max_steps": 7}},
        seeds={}, started_at=StartTime.now(), artifacts={},
        metrics=[MetricRecord(name="mse", value=1.0, split="val", n=3, detail=detail)],
    )  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    write_result(result, path / "result.json")
    return path


@pytest.fixture
def config(tmp_path):
    SceneReader(SPEC, resolution=32).save(tmp_path / "reader")
    return LongTailEvaluation(
        experiment="mine/long_tail", run=str(run_folder(tmp_path / "run")), reader=str(tmp_path / "reader"),
        model="renderer", n_per_class=6, n_resamples=100, sampling_steps=2, overlap_images=1, overlap_timesteps=(100,),
        output=str(tmp_path / "runs"),
    )  # fmt: skip


def records(path):
    return {(record.name, record.target): record for record in read_result(path).metrics}


@pytest.mark.slow
def test_rendered_images_are_as_good_as_their_control(config):
    found = records(evaluate_long_tail(replace(config, reader="scenes-reader")))
    for target in ("all", "many", "medium", "few"):
        accuracy = found["role_accuracy", target]
        assert accuracy.value > 0.9 and accuracy.controls["rendered"] > 0.9
        for name in ("precision", "recall", "density", "coverage"):
            one = found[name, target]
            assert abs(one.value - one.controls["rendered"]) < 0.25
            assert one.detail["interval"][0] <= one.value <= one.detail["interval"][1]
            assert set(one.detail["by_class"]) == set(one.detail["classes"])
            assert np.mean(list(one.detail["by_class"].values())) == pytest.approx(one.value)  # classes of equal size
        distance = found["frechet_distance", target]
        assert distance.value == pytest.approx(distance.controls["rendered"], rel=0.6)
    assert found["role_accuracy", "few"].n == 8 * 6 and found["role_accuracy", "all"].n == 24 * 6
    assert set(found["role_accuracy", "few"].detail["classes"]) == set(ROLES[-8:])
    assert found["recall", "all"].detail["passes_per_sample"] == 2
    assert found["recall", "all"].detail["max_steps"] == 7


def read(seed, *, wrong=(), shift=0.0):
    """Six images of each role around a point of its own; those of `wrong` roles look like the first role."""
    generator = np.random.default_rng(seed)
    roles = tuple(role for role in ROLES for _ in range(6))
    centres = np.array([10.0 * (0 if role in wrong else ROLES.index(role)) for role in roles])
    features = generator.normal(size=(len(roles), 4)) + shift
    features[:, 0] += centres
    return ReadImages(roles=roles, features=features, right=np.array([float(role not in wrong) for role in roles]))


def test_a_merged_tail_shows_in_the_few_and_not_in_the_many(config):
    trained = TrainedClasses(
        config=ClassesConfig(attribute="role"), counts=COUNTS, shots=shots(COUNTS), passes_per_sample=1, steps=None
    )
    merged = read(0, wrong=shots(COUNTS)["few"])
    found = {
        (one.name, one.target): one for one in quality_records(config, trained, merged, real=read(1), rendered=read(2))
    }
    assert found["role_accuracy", "few"].value == 0 and found["role_accuracy", "many"].value == 1
    assert found["coverage", "few"].value == 0 and found["coverage", "many"].value > 0.5
    assert found["recall", "few"].value == 0 and found["precision", "few"].value == 0
    assert found["frechet_distance", "few"].value > 50 * found["frechet_distance", "many"].value
    assert found["role_accuracy", "all"].value == pytest.approx(16 / 24)


def test_without_labels_all_images_count_and_none_is_read_as_a_role(config):
    trained = TrainedClasses(
        config=ClassesConfig(attribute="cluster", clusters="x"), counts={"0": 30, "1": 10}, shots=shots({"0": 30}),
        passes_per_sample=1, steps=None, labelled=False,
    )  # fmt: skip
    captions = trained.captions(6, len(ROLES))
    assert {name: len(texts) for name, texts in captions.items()} == {"0": 108, "1": 36} and captions["1"][0] == "1"
    images = read(0)
    images = ReadImages(roles=("0",) * 108 + ("1",) * 36, features=images.features, right=images.right * 0)
    found = quality_records(config, trained, images, real=read(1), rendered=read(2))
    assert {one.target for one in found} == {"all"}
    assert {one.name for one in found} == {"precision", "recall", "density", "coverage", "frechet_distance"}
    assert all(one.value > 0.5 for one in found if one.name in ("precision", "coverage"))


def test_a_self_guided_run_is_unconditional(config, tmp_path):
    result = make_result(
        run="r/1", experiment="r", kind="train_backbone", config={"prototypes": {"n": 4}, "trainer": {"max_steps": 7}},
        seeds={}, started_at=StartTime.now(), artifacts={}, metrics=[],
    )  # fmt: skip
    trained = TrainedClasses.of_run(result)
    assert not trained.labelled and trained.captions(6, 24) == {"": [""] * 144} and trained.steps == 7
    (tmp_path / "stage1").mkdir()
    write_result(result, tmp_path / "stage1" / "result.json")
    found = records(evaluate_long_tail(replace(config, run=str(tmp_path / "stage1"))))
    assert found["recall", "all"].n == 144 and set(found) == {
        (name, "all") for name in ("precision", "recall", "density", "coverage", "frechet_distance")
    }


def test_a_run_without_classes_or_on_others_is_refused(config, tmp_path):
    for changes, fact in (
        ({"facts": False}, "not trained on classes"),
        ({"classes": {"attribute": "colour", "template": "{value}"}}, "colour"),
        ({"counts": {"cook": 40, "astronaut": 20}}, "astronaut"),
    ):
        with pytest.raises(ConfigError, match=fact):
            evaluate_long_tail(replace(config, run=str(run_folder(tmp_path / fact, **changes))))


def test_a_reader_of_another_resolution_is_refused(config, tiny_sd):
    with pytest.raises(WeightsMismatch, match=r"32 pixels.*64"):
        evaluate_long_tail(replace(config, model=str(tiny_sd), reader="scenes-reader"))


@pytest.mark.slow
@pytest.mark.parametrize("term", ["plain", "diffrop", "cbdm", "oc"])
def test_an_experiment_is_trained_and_evaluated_at_tiny_size(term, config, tmp_path):
    """From shards to numbers, with the files of experiments/scenes/long_tail, at two steps."""
    from diffusers import AutoencoderKL

    from diffprobe.config.compose import load
    from diffprobe.runs.train_generative import train_generative
    from diffprobe.shards.datasets import scenes

    scenes.build(tmp_path / "scenes", n=600, seed=0)
    torch.manual_seed(0)
    AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    settings = [
        f"autoencoder={tmp_path / 'vae'}", f"data.path={tmp_path / 'scenes'}", "data.batch_size=8", "data.limit=400",
        "model={channels: [8, 16], cross_attention: [true, false], heads: 2, norm_groups: 4, text_width: 16, "
        "text_layers: 1, text_heads: 2, vocab_size: 540, max_tokens: 8}",
        "classes.imbalance=0.2", "classes.min_images=2", "trainer.max_steps=2", "trainer.enable_progress_bar=false",
        "warmup_steps=1", "trainer.precision=32-true", "logger=none", f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    path = train_generative(load(f"scenes/long_tail/{term}", settings))
    trained = TrainedClasses.of_run(read_result(path))
    assert trained.passes_per_sample == {"plain": 1, "oc": 1}.get(term, 2) and trained.steps == 2
    assert len(trained.counts) == 24 and min(trained.counts.values()) >= 2

    evaluated = evaluate_long_tail(replace(config, run=str(path.parent), model=None))
    overlap = records(evaluated)["class_overlap", "all"]
    matrix = np.array(overlap.detail["overlap"])
    assert matrix.shape == (24, 24) and np.allclose(np.diag(matrix), 1) and 0 < overlap.value <= 1
    assert set(overlap.detail["mean_of_rows"]) == {"many", "medium", "few"}
    before = json.loads(evaluated.read_text())["metrics"]
    assert (
        json.loads(evaluate_long_tail(replace(config, run=str(path.parent), model=None)).read_text())["metrics"]
        == before
    )
