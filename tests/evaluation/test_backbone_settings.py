"""Settings that name what will not be measured are refused before anything is loaded."""

import pytest
import yaml

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.config.compose import load
from diffprobe.config.parse import parse
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.evaluation.backbone_settings import BackboneEvaluation
from diffprobe.evaluation.captions import REGRESSIONS
from diffprobe.evaluation.gates import Gate
from diffprobe.shards.scenes.world import load_world
from tests.docs.markdown import ROOT, blocks


def settings(**changed) -> BackboneEvaluation:
    return BackboneEvaluation(experiment="x", data=DataConfig(path="x"), **changed)


def test_the_splits_are_those_of_the_data_or_the_named_ones():
    assert settings().scored_splits == ("val", "test")
    assert settings(splits=("test", "more")).scored_splits == ("test", "more")
    with pytest.raises(SplitLeak, match="'train'"):
        settings(splits=("train", "test"))
    for key in ("splits", "matched_attributes", "by_attributes"):
        with pytest.raises(ConfigError, match=f"{key}: .* a, b, a"):
            settings(**{key: ("a", "b", "a")})


@pytest.mark.parametrize(
    ("name", "gate", "words"),
    [
        ("psnr/test", Gate(at_least=1), "metric .*'psnr/test'.* 'psnr'"),
        ("caption_of_9_accuracy/test", Gate(at_least=1), "'caption_of_9_accuracy'"),
        ("matched_caption_accuracy_gender/test", Gate(at_least=1), "'matched_caption_accuracy_gender'"),
        ("denoising_error_t50/test", Gate(at_least=1), "'denoising_error_t50'"),
        ("psnr_db/tests", Gate(at_least=1), "split .*'psnr_db/tests'.* 'tests'"),
        ("psnr_db", Gate(at_least=1), "split .*'psnr_db'.* ''"),
        ("psnr_db/test", Gate(above=("mean_colour",)), "control .*'psnr_db/test'.* 'mean_colour'"),
        ("caption_of_10_accuracy/test", Gate(above=("regression",)), "control .* 'regression'"),
    ],
)
def test_gates_of_what_is_not_measured_are_refused(name, gate, words):
    with pytest.raises(ConfigError, match=words):
        settings(gates={name: gate}, matched_attributes=("style",), regression=RegressionRule(images=5))


def test_a_regression_that_is_not_fitted_cannot_be_exceeded():
    gates = {"caption_of_10_accuracy/test": Gate(above=("regression_on_words",))}
    with pytest.raises(ConfigError, match="'regression_on_words'") as caught:
        settings(gates=gates)
    assert "regression.images" in str(caught.value)
    assert settings(gates=gates, regression=RegressionRule(images=5)).gates == gates


def test_the_evaluation_of_emoji_demands_more_than_its_controls():
    found = load("emoji/evaluate", [], kinds=("evaluate_backbone",))
    assert found.scored_splits == ("val", "test", "combinations")
    for split in ("val", "test"):
        assert len(found.gates[f"caption_of_10_accuracy/{split}"].above) == 2
    with pytest.raises(ConfigError, match="'psnr_db/test'.* 'test'") as caught:
        load("emoji/evaluate", ["splits=[combinations]"], kinds=("evaluate_backbone",))
    assert "gates=null" in str(caught.value)
    assert load("emoji/evaluate", ["splits=[combinations]", "gates=null"], kinds=("evaluate_backbone",)).gates is None
    with pytest.raises(ConfigError, match="'psnr_db/tset'"):
        load("emoji/evaluate", ["gates={psnr_db/tset: {at_least: 1}}"], kinds=("evaluate_backbone",))
    with pytest.raises(ConfigError, match="psnr_db/test.* 27 .*expected keys of Gate"):
        load("emoji/evaluate", ["gates={psnr_db/test: 27}"], kinds=("evaluate_backbone",))


def test_the_evaluation_of_scenes_writes_its_matched_captions():
    """Every phrase is the text of a rule of the world, up to where the next factor stands."""
    found = load("scenes/evaluate", [], kinds=("evaluate_backbone",))
    world = load_world()
    assert set(found.matched_phrases) == {factor for rule in world.rules for factor in rule.factors}
    for name, phrase in found.matched_phrases.items():
        [rule] = [rule for rule in world.rules if name in rule.factors]
        assert phrase.format("{" + name + "}") in rule.text


@pytest.mark.parametrize("phrase", ["clothes", "{}", "{} or {}"])
def test_a_phrase_has_one_place_for_the_value_and_a_word(phrase):
    with pytest.raises(ConfigError, match="matched_phrases.colour: "):
        settings(matched_phrases={"colour": phrase})
    with pytest.raises(ConfigError, match="'colour' is in matched_attributes and in matched_phrases"):
        settings(matched_attributes=("colour",), matched_phrases={"colour": "{} clothes"})
    gates = {"matched_caption_accuracy_colour/test": Gate(at_least=0.5)}
    assert settings(matched_phrases={"colour": "{} clothes"}, gates=gates).gates == gates


def test_the_gates_of_the_documentation_are_valid():
    [block] = [block for block in blocks(ROOT / "docs/users/probes.md") if block.language == "yaml"]
    tree = yaml.safe_load(block.code)
    found = parse(BackboneEvaluation, {"experiment": "x", "data": {"path": "x"}, "regression": {"images": 9}, **tree})
    assert found.gates["caption_of_10_accuracy/test"].above == REGRESSIONS
