"""Settings of `eval concepts` that are refused, and what follows from the others."""

import dataclasses

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("words.car=[car]", "car"),
        ("words.hat=[]", "background, hat"),
        ("thresholds=[]", "thresholds"),
        ("words.background=[wall]", "thresholds"),
        ("thresholds=[0.5,0.5]", "thresholds"),
        ("thresholds=[1.5]", "1.5"),
        ("timesteps=[]", "timesteps"),
        ("controls=[majority_class,majority_class]", "controls"),
        ("space=attention", "raw_attention"),
        ("space=probs", "prompt_attention"),
        ("data.limit=10", "data.limit"),
        ("n_shown=1000", "n_shown=1000"),
    ],
)
def test_settings_without_meaning_are_refused(setting: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load("scenes/concepts", [setting], kinds=("evaluate_concepts",))


def test_words_belong_to_classes_in_their_order() -> None:
    config = load("scenes/concepts", ["words.hat=[a hat,a cap]"], kinds=("evaluate_concepts",))
    assert config.rest == 0 and dict(zip(config.texts, config.owners, strict=True))["a cap"] == 3
    whole = load("scenes/concepts", ["words.background=[wall]", "thresholds=[]"], kinds=("evaluate_concepts",))
    assert whole.rest is None and whole.texts[0] == "wall"


def test_words_of_one_class_are_refused() -> None:
    config = load("scenes/concepts", [], kinds=("evaluate_concepts",))
    with pytest.raises(ConfigError, match="one class"):
        dataclasses.replace(config, classes={"background": (0,), "figure": (2,)}, words={"figure": ("figure",)})


def test_the_cost_counts_the_passes_of_the_controls() -> None:
    config = load("scenes/concepts", ["timesteps=[25,100]", "n_val=10", "n_test=20"], kinds=("evaluate_concepts",))
    assert "60" in config.cost_lines[0] and "180 more" in config.cost_lines[1]
    cheap = load("scenes/concepts", ["controls=[shuffled_words]"], kinds=("evaluate_concepts",))
    assert len(cheap.cost_lines) == 1
