"""Train never has what is held out; train, val and test have one distribution."""

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.shards.scenes.factors import joint_table, sample
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.splits import SPLITS, split_indices, splits_of

N = 60_000


@pytest.mark.parametrize("world", ["planted", "permuted"])
def test_held_out_values_and_combinations_are_in_their_splits_alone(spec: WorldSpec, world: str) -> None:
    scenes = sample(spec, 2, np.arange(N), world=world)
    splits = splits_of(spec, scenes)
    assert set(splits.tolist()) == set(SPLITS)
    star = scenes.factors["object"] == spec.code("object", "star")
    assert (star == (splits == "held_out_values")).all()
    triples = list(zip(*(scenes.factors[name].tolist() for name in ("role", "texture", "colour")), strict=True))
    held = np.array([triple in spec.splits.combinations for triple in triples])
    assert (held & ~star == (splits == "held_out_combinations")).all()
    for name in ("val", "test"):
        share = (splits == name).sum() / (~held & ~star).sum()
        assert share == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / N))


def test_train_val_and_test_have_the_distribution_of_the_table(spec: WorldSpec) -> None:
    scenes = sample(spec, 2, np.arange(N))
    splits, table = splits_of(spec, scenes), joint_table(spec, 0, train=True)
    for name in ("train", "val", "test"):
        part = scenes.select(splits == name)
        counts = np.zeros(table.shape)
        np.add.at(counts, tuple(part.factors[factor] for factor in ("role", "texture", "colour")), 1)
        error = 5 * np.sqrt(table * (1 - table) / len(part))
        assert (np.abs(counts / len(part) - table) <= error).all()
        assert not counts[table == 0].any()


def test_indices_of_a_split_are_in_order_and_continue(spec: WorldSpec) -> None:
    first = split_indices(spec, 0, "train", 5000)
    assert len(first) == 5000 and (np.diff(first) > 0).all()
    assert set(splits_of(spec, sample(spec, 0, first)).tolist()) == {"train"}
    later = split_indices(spec, 0, "train", 10, start=int(first[-10]))
    assert (later == first[-10:]).all()
    assert len(split_indices(spec, 0, "held_out_values", 3)) == 3


def test_an_unknown_split_and_no_scene_are_refused(spec: WorldSpec) -> None:
    with pytest.raises(UnknownName, match="dev"):
        split_indices(spec, 0, "dev", 1)
    with pytest.raises(ConfigError, match="n=0"):
        split_indices(spec, 0, "train", 0)
