"""Captions state what the rules allow, at their rates, and parse back."""

import hashlib
import json

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.captions import captions_of, parse, values_of, write
from diffprobe.shards.scenes.factors import counterfactual_scenes, sample
from diffprobe.shards.scenes.spec import WorldSpec

N = 4000
PINNED = "2c47b028f120b370"


def test_captions_are_pinned(spec: WorldSpec) -> None:
    texts = captions_of(spec, sample(spec, 0, np.arange(200)))
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == PINNED


def test_captions_parse_back_to_the_stated_factors(spec: WorldSpec) -> None:
    scenes = sample(spec, 1, np.arange(N))
    stated: dict[str, int] = {}
    for row, texts in enumerate(captions_of(spec, scenes)):
        values = values_of(spec, scenes, row)
        assert len(texts) == spec.captions_per_image
        for text in texts:
            found = parse(spec, text)
            assert found.items() <= values.items()
            for name in found:
                stated[name] = stated.get(name, 0) + 1
    n = N * spec.captions_per_image
    assert stated["role"] == n and "background" not in stated and "build" not in stated and "pose" not in stated
    for rule in spec.rules:
        for name in rule.factors:
            error = 5 * np.sqrt(rule.probability * (1 - rule.probability) / n)
            assert abs(stated[name] / n - rule.probability) <= error, name
    assert next(rule.probability for rule in spec.rules if rule.factors == ("texture",)) == 0.3


def test_each_combination_of_rules_parses_back(spec: WorldSpec) -> None:
    scenes = sample(spec, 1, np.arange(40))
    for row in range(40):
        values = values_of(spec, scenes, row)
        for mask in range(1, 2 ** len(spec.rules)):
            chosen = [bool(mask >> place & 1) for place in range(len(spec.rules))]
            names = {name for rule, is_in in zip(spec.rules, chosen, strict=True) if is_in for name in rule.factors}
            assert parse(spec, write(spec, values, chosen)) == {name: values[name] for name in names}


def test_a_counterfactual_caption_differs_only_where_it_states_the_factor(spec: WorldSpec) -> None:
    scenes = sample(spec, 1, np.arange(300))
    changed = counterfactual_scenes(scenes, "texture", 1 - scenes.factors["texture"])
    n_different = 0
    for before, after in zip(captions_of(spec, scenes), captions_of(spec, changed), strict=True):
        for first, second in zip(before, after, strict=True):
            one, other = parse(spec, first), parse(spec, second)
            assert one.keys() == other.keys()
            differing = {name for name in one if one[name] != other[name]}
            assert differing == {"texture"} & one.keys()
            n_different += first != second
    assert n_different > 100


@pytest.mark.parametrize("text", ["a king", "a cook, dotted clothes", "a cook,red clothes", "", "a cook, "])
def test_other_texts_are_refused(spec: WorldSpec, text: str) -> None:
    with pytest.raises(ConfigError, match="rules"):
        parse(spec, text)
