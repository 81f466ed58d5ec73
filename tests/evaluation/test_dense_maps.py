"""What is read beside the cells, and the images of a split."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, SplitLeak
from diffprobe.evaluation.dense_maps import DenseImages, check_groups, gather, in_batches, maps_of


def sample(key: str, group: str | None, value: int = 0) -> Any:
    image = Image.fromarray(np.full((4, 4, 3), value, np.uint8))
    attributes = {} if group is None else {"scene": group}
    return SimpleNamespace(sample=SimpleNamespace(key=key, attributes=attributes, image=image))


def test_groups_are_those_of_the_set_and_else_the_keys() -> None:
    config: Any = load("scenes/depth", [], kinds=("evaluate_depth",))
    request: Any = SimpleNamespace(shard_set=SimpleNamespace(group="scene"))
    found = gather(config, request, "val", [sample("a", "s1"), sample("b", None)], 2)
    assert found.groups == ["s1", "b"]
    with pytest.raises(ConfigError, match=r"'val' of 'data/scenes' has 1 images; 2"):
        gather(config, request, "val", [sample("a", "s1")], 2)


def test_a_group_in_two_splits_is_refused() -> None:
    images = {name: DenseImages(samples=[], groups=[name, "both"]) for name in ("train", "val", "test")}
    images["val"] = DenseImages(samples=[], groups=["val"])
    with pytest.raises(SplitLeak, match=r"'both'.*train.*test"):
        check_groups(images)


def test_pixels_are_read_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("diffprobe.shards.batch.collate", lambda *_: SimpleNamespace(images=images))
    request: Any = SimpleNamespace(shard_set=None)
    (found,) = maps_of("pixels", request)([sample("a", None), sample("b", None)]).values()
    assert found.shape == (2, 27, 5, 4)
    assert torch.equal(found[:, 4::9], images)  # the middle of each 3 x 3
    assert torch.equal(found[:, 0::9, 1:, 1:], images[:, :, :-1, :-1])  # above, to the left
    assert torch.equal(found[:, 3::9, :, 0], images[:, :, :, 0])  # the border repeats its pixels
    (colours,) = maps_of("colours", request)([]).values()
    (nothing,) = maps_of("mean_by_position", request)([]).values()
    assert torch.equal(colours, images) and nothing.shape == (2, 1, 5, 4) and not nothing.any()


def test_batches_keep_the_order() -> None:
    samples: Any = list("abcde")
    assert [list(one) for one in in_batches(samples, 2)] == [["a", "b"], ["c", "d"], ["e"]]
