"""Rows of a store by its splits, and of a file."""

import pytest
import torch
from safetensors.torch import save_file

from diffprobe.benchmarks import ksae_rows
from diffprobe.benchmarks.ksae_rows import load_rows, stored_rows
from diffprobe.core.errors import ConfigError, SchemaError, UnknownName

CELL = "mid_block@t200:empty:none"


class Store:
    """What `stored_rows` reads of a store: maps of two places, in which each value says its image."""

    cells = (CELL,)

    def __init__(self, *splits: str) -> None:
        self.splits = splits
        self.manifest = type("M", (), {"recorded": {"backbone": "toy"}})

    def iter_shards(self, split: str, cells: list[str]):
        image = torch.arange(20.0)[:, None, None, None] + {"train": 0, "val": 100, "test": 200}[split]
        for shard in image.expand(20, 3, 1, 2).split(4):
            yield type("T", (), {"features": {CELL: shard.clone()}})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch):
    def of(*splits: str) -> None:
        monkeypatch.setattr(ksae_rows.FeatureStore, "open", lambda path: Store(*splits))

    return of


def test_the_splits_of_the_store_are_kept(opened) -> None:
    opened("train", "val", "test")
    rows = stored_rows("folder", "mid_block", images=5)
    assert rows.name == f"toy {CELL}" and [tuple(part.shape) for part in rows[:3]] == [(10, 3)] * 3
    assert [sorted(set(part[:, 0].tolist())) for part in rows[:3]] == [list(range(s, s + 5)) for s in (0, 100, 200)]


def test_without_a_validation_split_every_tenth_image_is_held_out_with_all_its_rows(opened) -> None:
    opened("train", "test")
    rows = stored_rows("folder", "mid_block")
    assert rows.val[:, 0].tolist() == [0, 0, 10, 10]
    assert not set(rows.val[:, 0].tolist()) & set(rows.train[:, 0].tolist()) and len(rows.train) == 36


def test_a_store_without_test_images_or_with_another_cell_is_refused(opened) -> None:
    opened("train", "val")
    with pytest.raises(ConfigError, match="no split test"):
        stored_rows("folder", "mid_block")
    with pytest.raises(ConfigError, match="images=0"):
        stored_rows("folder", "mid_block", images=0)
    with pytest.raises(UnknownName, match="mid_block"):
        stored_rows("folder", "mid_blok@t200")


def test_a_file_of_rows(tmp_path) -> None:
    parts = {name: torch.randn(4, 3) for name in ("train", "val", "test")}
    save_file(parts, tmp_path / "some.safetensors")
    rows = load_rows(tmp_path / "some.safetensors")
    assert rows.name == "some" and torch.equal(rows.val, parts["val"])
    save_file({"train": parts["train"]}, tmp_path / "other.safetensors")
    with pytest.raises(SchemaError, match="expected: train, val, test"):
        load_rows(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("wrong", "says"), [(torch.randn(4, 2), "one width"), (torch.randn(0, 3), "one width"), (torch.nan, "NaN")]
)
def test_rows_that_do_not_fit_are_refused(tmp_path, wrong, says: str) -> None:
    parts = {name: torch.randn(4, 3) for name in ("train", "val", "test")}
    parts["test"] = wrong if isinstance(wrong, torch.Tensor) else torch.full((4, 3), wrong)
    save_file(parts, tmp_path / "some.safetensors")
    with pytest.raises(ConfigError, match=says):
        load_rows(tmp_path / "some.safetensors")
