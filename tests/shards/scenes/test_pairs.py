"""Counterfactual pairs: one factor differs, and nothing is paired across splits."""

import numpy as np
import pytest

from diffprobe.core.errors import UnknownName
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.pairs import counterfactual, pairs_of
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import FACTORS, WorldSpec
from diffprobe.shards.scenes.splits import splits_of


def test_one_scene_with_another_value(spec: WorldSpec) -> None:
    base, changed = counterfactual(spec, 3, 5, "colour", "purple")
    assert len(base) == len(changed) == 1 and base.indices.tolist() == [5]
    assert changed.factors["colour"][0] == spec.code("colour", "purple")
    assert all((base.factors[name] == changed.factors[name]).all() for name in FACTORS if name != "colour")
    same = spec.names("size")[int(base.factors["size"][0])]
    _, unchanged = counterfactual(spec, 3, 5, "size", same)
    assert (render(spec, base).images == render(spec, unchanged).images).all()
    for wrong in (("shoe", "red"), ("colour", "pink")):
        with pytest.raises(UnknownName, match=wrong[0]):
            counterfactual(spec, 3, 5, *wrong)


@pytest.mark.parametrize("factor", FACTORS)
def test_pairs_differ_in_their_factor_and_share_a_split(spec: WorldSpec, factor: str) -> None:
    pairs = pairs_of(spec, sample(spec, 3, np.arange(3000)), factor)
    base, changed = pairs.base.factors, pairs.changed.factors
    assert len(pairs.base) == len(pairs.changed) > 1500
    assert (base[factor] != changed[factor]).all()
    assert all((base[name] == changed[name]).all() for name in FACTORS if name != factor)
    assert (splits_of(spec, pairs.base) == splits_of(spec, pairs.changed)).all()
    k = len(spec.values[factor])
    steps = np.bincount((changed[factor] - base[factor]) % k, minlength=k)[1:]
    if factor not in ("object", "role", "colour", "texture"):  # whose pairs with a held-out side are left out
        n = len(pairs.base)
        assert steps == pytest.approx(n / (k - 1), abs=5 * np.sqrt(n / (k - 1)) + 1e-9)


def test_an_unknown_factor_is_refused(spec: WorldSpec) -> None:
    with pytest.raises(UnknownName, match="shoe"):
        pairs_of(spec, sample(spec, 3, [0]), "shoe")
