"""The samples of certificates of dictionaries: their labels, groups and masks."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.certificates.dictionary_samples import Reading, labels_of, scene_samples, shard_samples
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.shards.scenes.factors import sample


def test_hat_and_tool_follow_from_the_role() -> None:
    spec = WorldSettings().load_world()
    scenes = sample(spec, 1, range(50))
    hats = labels_of(spec, scenes, "hat")
    assert [list(spec.hats)[code] for code in hats] == [spec.roles[code].hat for code in scenes.factors["role"]]
    assert np.array_equal(labels_of(spec, scenes, "size"), scenes.factors["size"])


def test_scenes_have_masks_in_a_cell_with_places_alone(tiny_sd: Path) -> None:
    spec = WorldSettings().load_world()
    given = {"world": "planted", "seed": 1, "n_train": 6, "n_test": 5, "factors": ("texture",), "pointing": ("hat",)}
    reading = Reading(backbone=str(tiny_sd), cell="conv_in@t500:empty:none", resolution=32)
    found = scene_samples(spec, reading, tolerance=0, **given)  # type: ignore[arg-type]
    assert found.train.ndim == 4 and found.shown["hat"].covered.shape == (5, *found.test.shape[2:])
    assert [len(part) for part in found.labels["texture"]] == [6, 5] and not found.not_measured
    pooled = Reading(backbone=str(tiny_sd), cell="conv_in@t500", resolution=32)
    found = scene_samples(spec, pooled, tolerance=0, **given)  # type: ignore[arg-type]
    assert found.train.ndim == 2 and not found.shown and "pooled" in found.not_measured["pointing game"]


def test_random_weights_change_the_features_and_not_the_labels(tiny_sd: Path) -> None:
    reading = [
        Reading(backbone=str(tiny_sd), cell="conv_in@t500", resolution=32, random_weights=random)
        for random in (False, True)
    ]
    given = {"world": "planted", "seed": 1, "n_train": 4, "n_test": 4, "factors": ("texture",), "pointing": ()}
    spec = WorldSettings().load_world()
    own, other = (scene_samples(spec, one, tolerance=0, **given) for one in reading)  # type: ignore[arg-type]
    assert not np.allclose(own.test, other.test)
    assert np.array_equal(own.labels["texture"][1], other.labels["texture"][1])


def test_attributes_and_groups_of_a_shard_set(tiny_sd: Path, tiny_shards: Path) -> None:
    reading = Reading(backbone=str(tiny_sd), cell="conv_in@t500", resolution=32)
    given = {"n_train": 10, "n_test": 3, "factors": ("style", "label"), "most_values": 2}
    found, fit = shard_samples(str(tiny_shards), reading, n_fit=14, **given)  # type: ignore[arg-type]
    assert fit is not None and len(fit) == 14 and np.array_equal(fit[:10], found.train) and len(found.test) == 3
    assert {part.max() for part in found.labels["label"]} <= {0, 1, -1}
    with pytest.raises(UnknownName, match="hue"):
        shard_samples(str(tiny_shards), reading, **{**given, "factors": ("hue",)})  # type: ignore[arg-type]
    told = Reading(backbone=str(tiny_sd), cell="conv_in@t500:prompt", resolution=32)
    with pytest.raises(ConfigError, match="prompt"):
        shard_samples(str(tiny_shards), told, **given)  # type: ignore[arg-type]
