"""The measures on the tiny pipeline and shards, and errors for models and data that cannot be measured."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.backbones.families import sd_unet
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName, WeightsMismatch, WeightsMissing
from diffprobe.core.result import read_result
from diffprobe.evaluation import backbone as module
from diffprobe.evaluation.backbone import evaluate_backbone, load_pipeline
from diffprobe.evaluation.backbone_settings import BackboneEvaluation
from diffprobe.evaluation.backbone_tables import backbone_tables
from diffprobe.evaluation.gates import Gate
from diffprobe.generative.image_table import load_table
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.shards.index import ShardSet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_sd, tiny_shards) -> BackboneEvaluation:
    return BackboneEvaluation(
        experiment="tiny/evaluate",
        model=str(tiny_sd),
        data=DataConfig(path=str(tiny_shards)),
        group_attribute="colour",
        n_candidates=3,
        n_choice_timesteps=3,
        n_screening_timesteps=1,
        n_screened=2,
        regression=RegressionRule(images=20),
        matched_attributes=("style",),
        n_matched_timesteps=2,
        by_attributes=("colour",),
        gates={"psnr_db/val": Gate(at_least=-100.0), "caption_of_3_accuracy/test": Gate(at_least=1.1)},
        prompts=("noto emoji, cat", "twemoji emoji, dog", "red circle"),
        sampling_steps=2,
    )


@pytest.fixture(scope="module")
def evaluated(config, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    path, checks = evaluate_backbone(dataclasses.replace(config, output=str(output)))
    return path, checks, {(r.name, r.split): r for r in read_result(path).metrics}


def test_all_questions_are_answered_on_both_splits(evaluated):
    path, _, records = evaluated
    names = {"psnr_db", "tenths_where_text_helps", "caption_of_3_accuracy"}
    names |= {f"denoising_error_t{t}" for t in range(50, 1000, 100)}
    assert set(records) == {(name, split) for name in names for split in ("val", "test")}
    assert {record.n for record in records.values()} == {4}
    result = read_result(path)
    assert result.kind == "backbone_eval" and result.seeds == {"seed": 0} and "output" not in result.config
    assert path.parent.parts[-3:] == ("tiny", "evaluate", result.run)


@pytest.mark.slow
def test_another_model_of_the_same_name_and_other_settings_leave_earlier_results(tiny_sd, config, tmp_path):
    model = tmp_path / "model"
    few = {
        "regression": RegressionRule(images=0),
        "prompts": (),
        "n_candidates": 2,
        "n_choice_timesteps": 1,
        "gates": {},
    }
    few |= {"model": str(model), "output": str(tmp_path / "runs"), "n_screening_timesteps": 0}

    def evaluate(**changed):
        return evaluate_backbone(dataclasses.replace(config, **few, **changed))[0]

    shutil.copytree(tiny_sd, model)
    first, again, fewer = evaluate(), evaluate(), evaluate(data=dataclasses.replace(config.data, limit=3))
    shutil.rmtree(model)
    sd_unet.tiny(model, seed=1)
    other = evaluate()
    assert first == again and len({first, fewer, other}) == 3
    results = {path: read_result(path) for path in (first, fewer, other)}
    assert results[first].artifacts["input/backbone"] == results[fewer].artifacts["input/backbone"]
    assert results[first].artifacts["input/backbone"] == checkpoint_digest(str(tiny_sd))
    assert results[other].artifacts["input/backbone"] == checkpoint_digest(str(model))
    assert {found.artifacts["input/shards"] for found in results.values()} == {ShardSet.load(config.data.path).digest}
    assert results[first].config == results[other].config and results[first].metrics != results[other].metrics


def test_reconstruction_has_controls_without_a_model(config, evaluated):
    record = evaluated[2]["psnr_db", "val"]
    images = load_table(config.data, "val", resolution=32).to_float(slice(None))
    mse = (images - images.mean((-2, -1), keepdim=True)).square().mean((1, 2, 3))
    assert record.controls["mean_colour"] == pytest.approx(float((-10 * mse.log10()).mean()), abs=1e-3)
    assert record.controls["mean_colour"] < record.controls["thumbnail_8x8"] < 100
    assert record.value < record.controls["thumbnail_8x8"]  # random weights


def test_the_use_of_the_text_is_counted_over_the_tenths(evaluated):
    records = evaluated[2]
    for split in ("val", "test"):
        errors = [records[f"denoising_error_t{t}", split] for t in range(50, 1000, 100)]
        assert all(0.5 < record.value < 2 for record in errors)  # a net that predicts nothing is at 1
        won = sum(record.controls["shuffled_captions"] > record.value for record in errors)
        assert records["tenths_where_text_helps", split].value == won


def test_the_choice_has_chance_and_an_interval_beside_it(evaluated):
    record = evaluated[2]["caption_of_3_accuracy", "test"]
    low, high = record.detail["interval"]
    assert record.controls.pop("chance") == 1 / 3 and low <= record.value <= high
    assert set(record.controls) == {"regression_on_words", "regression_on_text_encoder"}
    assert all(0 <= value <= 1 for value in record.controls.values())
    assert record.detail["timesteps"] == [166, 500, 833]
    assert record.detail["screening"]["timesteps"] == [500] and record.detail["screening"]["kept"] == 2


def test_samples_are_a_grid_of_all_prompts(evaluated):
    grid = Image.open(evaluated[0].parent / "samples.png")
    assert grid.size == (2 * (32 + 8) + 8, 2 * (32 + 8) + 8)  # three images of 32 pixels in a square of four
    assert grid.getpixel((4, 4)) == (255, 255, 255) and grid.getpixel((60, 60)) == (255, 255, 255)
    assert grid.crop((8, 8, 40, 40)).getcolors() is None or len(grid.crop((8, 8, 40, 40)).getcolors()) > 10


def test_missed_gates_are_named(evaluated):
    _, checks, records = evaluated
    value = records["caption_of_3_accuracy", "test"].value
    assert [check.reached for check in checks] == [True, False]
    assert checks[1].line == f"caption_of_3_accuracy/test is {value:.4g}, at least 1.1 is required"


def test_the_tables_of_the_result_are_beside_it(evaluated):
    path = evaluated[0]
    tables = path.with_name("tables.md").read_text()
    assert tables == backbone_tables(read_result(path))
    assert "| caption_of_3_accuracy | test | 4 |" in tables and "missed |" in tables


def test_data_that_cannot_be_asked_are_refused(config, tmp_path):
    def evaluate(**changed):
        evaluate_backbone(dataclasses.replace(config, output=str(tmp_path), **changed))

    with pytest.raises(UnknownName, match="unknown group_attribute 'color'"):
        evaluate(group_attribute="color")
    with pytest.raises(UnknownName, match="unknown family_attribute 'shade'"):
        evaluate(family_attribute="shade")
    with pytest.raises(UnknownName, match="unknown matched_attributes 'shade'"):
        evaluate(matched_attributes=("style", "shade"))
    with pytest.raises(UnknownName, match="unknown by_attributes 'shade'"):
        evaluate(by_attributes=("shade",))
    with pytest.raises(EmptyClass, match="10 different groups"):
        evaluate(n_candidates=10, gates={})
    for screening in (2, 9):
        with pytest.raises(ConfigError, match=f"n_screening_timesteps={screening} .* n_choice_timesteps=3"):
            evaluate(n_screening_timesteps=screening)
    with pytest.raises(ConfigError, match="n_screening_timesteps=1 .* n_choice_timesteps=2"):
        evaluate(n_choice_timesteps=2)
    assert not list(tmp_path.rglob("result.json"))


def test_only_the_named_splits_are_scored_and_an_unknown_one_is_refused_before_the_model_is_opened(config, tmp_path):
    few = {"regression": RegressionRule(images=0), "prompts": (), "n_candidates": 2, "n_choice_timesteps": 1}
    few |= {"n_screening_timesteps": 0, "gates": {}, "matched_attributes": (), "output": str(tmp_path)}
    path, _ = evaluate_backbone(dataclasses.replace(config, **few, splits=("test",)))
    result = read_result(path)
    assert {record.split for record in result.metrics} == {"test"} and result.config["splits"] == ["test"]
    with pytest.raises(UnknownName, match="'combinations'"):
        evaluate_backbone(
            dataclasses.replace(config, **few | {"model": str(tmp_path / "nothing")}, splits=("test", "combinations"))
        )


def test_a_limit_is_one_of_the_scored_images_alone(config, tmp_path, monkeypatch):
    encoded, from_module = {}, module.encode_split

    def watch(data, split, *args, **kwargs):
        encoded[split] = from_module(data, split, *args, **kwargs)
        return encoded[split]

    monkeypatch.setattr(module, "encode_split", watch)
    few = dataclasses.replace(config, limit=3, n_candidates=2, prompts=(), gates=None, output=str(tmp_path))
    metrics = read_result(evaluate_backbone(few)[0]).metrics
    assert {record.n for record in metrics} == {3} and len(encoded["train"].table) > 3
    with pytest.raises(ConfigError, match="limit=0"):
        dataclasses.replace(config, limit=0)


def test_written_captions_are_scored_beside_the_others(config, tmp_path):
    settings = dataclasses.replace(
        config, matched_attributes=(), matched_phrases={"style": "{} emoji"}, prompts=(), gates=None,
        output=str(tmp_path),
    )  # fmt: skip
    metrics = {(record.name, record.split): record for record in read_result(evaluate_backbone(settings)[0]).metrics}
    record = metrics["matched_caption_accuracy_style", "test"]
    assert record.controls["chance"] == 0.5 and {"regression_on_words", "regression_on_text_encoder"} < set(
        record.controls
    )
    with pytest.raises(UnknownName, match="matched_phrases"):
        evaluate_backbone(dataclasses.replace(settings, matched_phrases={"hat": "a {}"}))


def test_captions_of_emoji_are_matched_where_its_samples_are(tiny_sd, tmp_path, caplog):
    config = BackboneEvaluation(
        experiment="emoji/evaluate", model=str(tiny_sd), data=DataConfig(path="emoji", limit=100),
        splits=("combinations",), family_attribute="family", n_candidates=2, n_choice_timesteps=1,
        matched_attributes=("style", "skin_tone", "gender"), n_matched_timesteps=1, output=str(tmp_path),
    )  # fmt: skip
    path, _ = evaluate_backbone(config)
    found = {record.name: record for record in read_result(path).metrics if record.name.startswith("matched")}
    attributes = load_table(config.data, "combinations", resolution=32).attributes
    for name in ("skin_tone", "gender"):
        record = found[f"matched_caption_accuracy_{name}"]
        assert 2 <= record.n <= sum(name in values for values in attributes)
        assert record.n + record.detail["left_out"] == 100 and record.controls == {"chance": 0.5}
    assert ("matched_caption_accuracy_style" in found) != ("'style'" in caplog.text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_candidates", 1), ("n_matched_timesteps", 0), ("n_choice_timesteps", 0), ("sampling_steps", 0),
     ("n_screened", 0), ("n_screening_timesteps", -1)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(config, key, value):
    with pytest.raises(ConfigError, match=f"{key}={value} is out of range"):
        dataclasses.replace(config, **{key: value})


def test_the_numbers_are_kept_where_the_samples_fail(config, tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no samples")

    monkeypatch.setattr("diffprobe.evaluation.backbone.sample_grid", fails)
    few = {"regression": RegressionRule(images=0), "n_candidates": 2, "n_choice_timesteps": 1, "gates": {}}
    with pytest.raises(RuntimeError, match="no samples"):
        evaluate_backbone(dataclasses.replace(config, **few, n_screening_timesteps=0, output=str(tmp_path)))
    assert [read_result(path).kind for path in tmp_path.rglob("result.json")] == ["backbone_eval"]


def test_a_pipeline_is_opened_in_float32_without_a_word(tiny_sd, tmp_path, capfd):
    from diffusers import StableDiffusionPipeline

    half = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None).to(torch.float16)
    half.save_pretrained(tmp_path / "half")
    capfd.readouterr()
    pipeline, _ = load_pipeline(str(tmp_path / "half"))
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {value.dtype for part in parts for value in part.parameters()} == {torch.float32}
    assert capfd.readouterr() == ("", "")


def test_models_that_cannot_be_measured_are_refused(tiny_sd, tmp_path):
    with pytest.raises(WeightsMismatch, match="'pixels' .* StableDiffusionPipeline"):
        load_pipeline("pixels")
    with pytest.raises(WeightsMissing, match="no folder"):
        load_pipeline(str(tmp_path / "nothing"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(WeightsMismatch, match="PixArtAlphaPipeline"):
        load_pipeline(str(other))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="missing: unet"):
        load_pipeline(str(broken))
    shutil.copytree(tiny_sd / "unet", broken / "unet", dirs_exist_ok=True)
    shutil.copytree(broken, tmp_path / "unscheduled")
    shutil.rmtree(tmp_path / "unscheduled" / "scheduler")
    with pytest.raises(WeightsMissing, match="scheduler_config.json"):
        load_pipeline(str(tmp_path / "unscheduled"))
    shutil.copytree(broken, tmp_path / "other_scheduler")
    index = tmp_path / "other_scheduler" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "NoScheduler"]}))
    with pytest.raises(WeightsMismatch, match="NoScheduler"):
        load_pipeline(str(tmp_path / "other_scheduler"))
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(WeightsMissing, match="no vocabulary"):
        load_pipeline(str(broken))


def test_pipeline_and_score_share_the_networks(tiny_sd):
    pipeline, score = load_pipeline(str(tiny_sd))
    assert (
        pipeline.unet is score.backbone.denoiser
        and pipeline.text_encoder is score.backbone.components()["text_encoder"]
    )


def test_the_regression_reads_means_over_the_words_and_the_end(tiny_sd):
    pipeline, score = load_pipeline(str(tiny_sd))
    captions = ["noto emoji, red circle", "cat", ""]
    means = score.backbone.texts["text_encoder"].mean_states(captions)
    for row, caption in enumerate(captions):
        tokens = pipeline.tokenizer([caption], return_tensors="pt").input_ids  # not padded
        with torch.no_grad():
            states = pipeline.text_encoder(tokens).last_hidden_state[0, 1:]
        torch.testing.assert_close(means[row], states.mean(0), rtol=1e-4, atol=1e-5)


def test_a_model_that_predicts_v_is_measured_too(config, tmp_path):
    other = sd_unet.tiny(tmp_path / "v", channels=(16,), prediction="v_prediction")
    few = {"regression": RegressionRule(images=0), "prompts": (), "n_choice_timesteps": 1, "n_screening_timesteps": 0}
    changed = {"model": str(other), "output": str(tmp_path), "data": dataclasses.replace(config.data, limit=3)}
    path, _ = evaluate_backbone(dataclasses.replace(config, **few, **changed))
    assert {record.n for record in read_result(path).metrics} == {3}
