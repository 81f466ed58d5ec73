"""`eval generations` on the tiny pipeline and shards, whose captions name style, colour and group."""

import dataclasses
import shutil

import pytest
import torch

from diffprobe.analysis import latent_classifier
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, SchemaError, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.generations import GENERATED, GenerationEvaluation, evaluate_generations, names_value
from diffprobe.evaluation.held_out import encode_split
from diffprobe.evaluation.use import open_taps
from diffprobe.report.default_table import default_tables
from diffprobe.scoring.intervention_network import InterventionNetwork

NAMES = ("mean_ablation", "zero_ablation", "patching")


@pytest.fixture(scope="module")
def config(tiny_sd, tiny_shards, tmp_path_factory):
    tree = {
        "experiment": "tiny/generations",
        "backbone": {"path": str(tiny_sd), "device": "cpu"},
        "data": {"path": str(tiny_shards), "batch_size": 8},
        "features": {"taps": ["mid_block"], "timesteps": [200, 800], "condition": "caption"},
        "interventions": list(NAMES),
        "attributes": ["style"],
        "train_limit": 4,
        "sampling_steps": 2,
        "guidance": 2.0,
        "output": str(tmp_path_factory.mktemp("generations")),
    }
    return parse(GenerationEvaluation, tree)


@pytest.fixture(scope="module", autouse=True)
def _small_latents():
    """Classify coarser latents: a fit of 1,024 dimensions takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_classifier, "_SIDE", 4)
        yield


@pytest.fixture(scope="module")
def evaluated(config):
    return evaluate_generations(config)


@pytest.mark.slow
def test_every_cell_is_sampled_under_every_intervention_from_one_noise(evaluated):
    result = read_result(evaluated)
    assert result.kind == "generations" and result.experiment == "tiny/generations"
    cells = [f"mid_block@t{t}:caption:mean" for t in (200, 800)]
    assert [(record.cell, record.probe) for record in result.metrics] == [(c, name) for c in cells for name in NAMES]
    for record in result.metrics:
        assert record.target == "style" and record.n == 4 and record.split == "val"
        assert record.detail["classifier_n_train"] == 16 and record.detail["n_unnamed"] == 0
        assert record.detail["steps"] == [499 if "@t200:" in record.cell else 999]
        # the classifier is not valid on images of a model with random weights, so no difference is reported
        assert record.name == "attribute_share" and "'style' is not above" in record.detail["not_valid"]


@pytest.mark.slow
def test_the_difference_is_to_the_untouched_images_of_the_same_prompts(config, evaluated, tmp_path, monkeypatch):
    """A planted classifier: right on untouched and real images, wrong under one of three interventions."""
    right, calls = torch.tensor([0, 1, 0, 1]), []
    ids = encode_split_of(config).attributes["style"]
    assert sorted(ids.tolist()) == right.sort().values.tolist()

    def predict(self, latents):
        calls.append(len(latents))
        place = (len(calls) - 1) % 5  # untouched, real, and the three interventions of each cell
        return (1 - ids if place == 3 else ids).numpy()

    monkeypatch.setattr(latent_classifier.LatentClassifier, "predict", predict)
    shutil.copytree(evaluated.parents[2], tmp_path, dirs_exist_ok=True)  # with the latents that are sampled already
    result = read_result(evaluate_generations(changed(config, tmp_path)))
    found = {(r.cell, r.probe, r.name): r for r in result.metrics}
    assert calls == [4] * 10 and len(found) == 2 * 3 * 2
    for (_, probe, name), record in found.items():
        lost = probe == "zero_ablation"
        assert record.value == {"attribute_share": 0.0 if lost else 1.0}.get(name, -1.0 if lost else 0.0)
        assert name != "attribute_share" or record.controls == {"untouched": 1.0, "chance": 0.5}
    (spec,) = default_tables([result]).specs
    assert spec.metric == "delta_attribute_share" and spec.filter["target"] == "style" and not spec.ranked
    assert {axis.field for axis in spec.rows} == {"probe", "tap"} and spec.columns.field == "timestep"


def encode_split_of(config):
    opened = open_taps(config)
    return encode_split(opened.request, opened.network, opened.split, opened.group, limit=None)


@pytest.mark.slow
def test_finished_cells_are_not_sampled_again(config, evaluated, monkeypatch):
    before = read_result(evaluate_generations(config)).metrics
    passes = []
    predict = InterventionNetwork.predict
    monkeypatch.setattr(
        InterventionNetwork, "predict", lambda self, x, t, i, c=None: passes.append(c) or predict(self, x, t, i, c)
    )
    evaluate_generations(config)
    assert passes == [None] * 4  # the untouched run alone: two steps, two branches of guidance
    assert read_result(evaluated).metrics == before


@pytest.mark.slow
def test_files_of_other_prompts_are_refused(config, evaluated):
    from safetensors.torch import load_file, save_file

    one, other = sorted((evaluated.parent / GENERATED).iterdir())
    content = one.read_bytes()
    try:
        one.write_bytes(other.read_bytes())
        with pytest.raises(SchemaError, match=r"does not hold the latents of mid_block@t(.|\n)*remove the folder"):
            evaluate_generations(config)
        one.write_bytes(content)
        assert set(load_file(one)) == set(NAMES)
        save_file({"patching": torch.zeros(4, 4, 16, 16)}, one)
        with pytest.raises(SchemaError, match="does not hold the latents"):
            evaluate_generations(config)
    finally:
        one.write_bytes(content)


def changed(config, tmp_path, **keys):
    return dataclasses.replace(config, output=str(tmp_path), **keys)


def test_what_cannot_be_measured_is_refused(config, tmp_path):
    with pytest.raises(UnknownName, match=r"attribute 'stile'(.|\n)*style"):
        evaluate_generations(changed(config, tmp_path, attributes=("stile",)))
    silent = dataclasses.replace(config.features, condition="template", prompt="a {class_name}")
    with pytest.raises(ConfigError, match=r"'style': 0 of 4 prompts name the sample's value(.|\n)*\{style\}"):
        evaluate_generations(changed(config, tmp_path, features=silent))
    with pytest.raises(ConfigError, match="no sampling step is nearest to t=200"):
        evaluate_generations(changed(config, tmp_path, sampling_steps=1))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_settings_that_do_not_fit_are_refused(config):
    with pytest.raises(ConfigError, match=r"attributes=\[\]: at least one"):
        dataclasses.replace(config, attributes=())
    empty = dataclasses.replace(config.features, condition="empty")
    with pytest.raises(ConfigError, match=r"condition=empty(.|\n)*features.condition=caption"):
        dataclasses.replace(config, features=empty)
    for keys in ({"sampling_steps": 0}, {"classifier_limit": 0}):
        with pytest.raises(ConfigError, match="out of range: at least 1"):
            dataclasses.replace(config, **keys)


@pytest.mark.parametrize(
    ("prompt", "value", "named"),
    [
        ("noto emoji, woman astronaut", "noto", True),
        ("Noto emoji", "noto", True),
        ("woman astronaut", "man", False),
        ("medium-dark skin tone", "medium-dark", True),
        ("a pizza slice", "food-drink", False),
        ("anything", "", False),
    ],
)
def test_a_prompt_names_a_value_by_whole_words(prompt, value, named):
    assert names_value(prompt, value) is named
