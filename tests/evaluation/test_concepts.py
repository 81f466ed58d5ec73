"""`eval concepts` on rendered scenes and a tiny pipeline: records, controls, the picture, bad masks and models."""

import dataclasses
from pathlib import Path

import pytest

from diffprobe.backbones.families import sd3
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.core.result import read_result
from diffprobe.evaluation.concepts import evaluate_concepts
from diffprobe.evaluation.concepts_picture import PICTURE_FILE
from diffprobe.evaluation.concepts_settings import ConceptsEvaluation
from diffprobe.shards.datasets import scenes
from diffprobe.shards.scenes.spec import MASKS


@pytest.fixture(scope="module")
def config(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> ConceptsEvaluation:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.build(out=folder, n=120, seed=4)
    return parse(
        ConceptsEvaluation,
        {
            "experiment": "tiny/concepts",
            "backbone": {"path": str(tiny_sd), "device": "cpu"},
            "data": {"path": str(folder), "batch_size": 4},
            "classes": {name: list(values) for name, values in MASKS.items()},
            "words": {"object": ["box"], "figure": ["figure", "a"], "hat": ["hat"], "tool": ["tool"]},
            "timesteps": [20, 60], "thresholds": [0.4, 0.8], "scale": "min_max",
            "n_val": 5, "n_test": 6, "n_shown": 2, "output": str(tmp_path_factory.mktemp("runs")),
        },
    )  # fmt: skip


@pytest.mark.slow
def test_the_candidate_of_val_is_scored_on_test_beside_the_controls(config: ConceptsEvaluation) -> None:
    path = evaluate_concepts(config)
    result = read_result(path)
    assert result.kind == "concepts" and path.with_name(PICTURE_FILE).stat().st_size > 1000
    val = {(one.cell, one.detail["threshold"]): one.value for one in result.metrics if one.split == "val"}
    assert {threshold for _, threshold in val} == {0.4, 0.8} and {"@t20" in cell for cell, _ in val} == {True, False}
    test = {one.name: one for one in result.metrics if one.split == "test"}
    pooled = test["miou_pooled"]
    assert (pooled.cell, pooled.detail["threshold"]) == max(val, key=lambda one: val[one])
    for one in test.values():
        assert set(one.controls) == set(config.controls) and 0 < one.value < 1 and one.n == 6
        for name, value in one.controls.items():
            assert one.detail["differences"][name][0] == pytest.approx(one.value - value)
    assert test["pixel_accuracy"].controls["majority_class"] > 0.5  # background
    shares = test["mean_average_precision"].detail["controls_by_class"]["majority_class"]
    assert shares["background"] > 0.5 > sum(v for name, v in shares.items() if name != "background")


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(config: ConceptsEvaluation) -> None:
    small = dataclasses.replace(config, timesteps=(20,), controls=("raw_attention",), n_shown=0)
    other = dataclasses.replace(small, data=dataclasses.replace(small.data, batch_size=6))
    one, two = (read_result(evaluate_concepts(each)) for each in (small, other))
    assert [each.value for each in one.metrics] == pytest.approx([each.value for each in two.metrics], abs=1e-3)


@pytest.mark.slow
def test_bad_masks_attentions_and_models_are_refused(config: ConceptsEvaluation, tmp_path: Path) -> None:
    classes = {name: values for name, values in config.classes.items() if name != "hat"}
    words = {name: values for name, values in config.words.items() if name != "hat"}
    with pytest.raises(SampleError, match="in no class"):
        evaluate_concepts(dataclasses.replace(config, classes=classes, words=words))
    with pytest.raises(ConfigError, match=r"nowhere\.attn2"):
        evaluate_concepts(dataclasses.replace(config, attentions=("nowhere.attn2",)))
    joint = dataclasses.replace(config.backbone, path=str(sd3.tiny(tmp_path / "sd3")))
    with pytest.raises(ConfigError, match="space=probs"):
        evaluate_concepts(dataclasses.replace(config, backbone=joint))
