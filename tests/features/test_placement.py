"""Where a split is kept: the same values everywhere, and a split that is too large is refused before it is read."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.features.batch import FeatureTable, concatenate
from diffprobe.features.placement import check_fits, free_on, place_tables

MEAN, MAP = "mid@t1:empty:mean", "mid@t1:empty:none"
CPU = torch.device("cpu")


def make_table(n, start=0):
    numbers = torch.arange(start, start + n)
    maps = numbers.view(n, 1, 1, 1) + torch.arange(24.0).view(2, 3, 4) / 100
    keys = [f"key {i}" for i in numbers.tolist()]
    captions, shards = [f"caption of {key}" for key in keys], [f"{start}.tar"] * n
    features = {MEAN: numbers[:, None] + torch.zeros(5), MAP: maps}
    return FeatureTable(features, keys, numbers, {"style": -numbers}, captions, shards)


def test_every_mode_keeps_all_columns():
    tables = [make_table(3), make_table(2, 3)]
    whole = concatenate(tables)
    for mode in ("auto", "memory", "mapped", "device"):
        kept = place_tables(tables, mode, split="train")
        assert len(kept) == (2 if mode == "mapped" else 1)
        found = concatenate(kept)
        assert (found.keys, found.captions, found.shards) == (whole.keys, whole.captions, whole.shards)
        assert found.label.equal(whole.label) and found.attributes["style"].equal(-whole.label)
        assert all(found.features[cell].equal(whole.features[cell]) for cell in whole.features)


def test_auto_reads_small_splits_of_several_files_only():
    tables = [make_table(3), make_table(2, 3)]
    assert place_tables(tables, "auto", split="train", in_memory_bytes=100) == tables
    assert place_tables(tables[:1], "auto", split="train") == tables[:1]
    (kept,) = place_tables(tables[:1], "memory", split="train")
    assert kept.features[MEAN].data_ptr() != tables[0].features[MEAN].data_ptr()


def test_places_of_a_map_lie_together_in_memory():
    (kept,) = place_tables([make_table(3), make_table(2, 3)], "memory", split="train")
    assert kept.features[MAP].shape == (5, 2, 3, 4) and kept.features[MAP].movedim(1, -1).is_contiguous()


@pytest.mark.usefixtures("no_shape_checks")
def test_a_split_larger_than_memory_is_refused_with_its_size():
    view = torch.zeros(1).expand(2**30, 2**20)  # takes no memory
    huge = FeatureTable({MEAN: view}, [], torch.zeros(0, dtype=torch.int64), {})
    assert place_tables([huge], "mapped", split="train") == [huge]
    for mode in ("memory", "device"):
        with pytest.raises(
            ConfigError, match=rf"features.placement={mode}: split 'train' needs 4.19e\+06 GiB; .* GiB of cpu"
        ):
            place_tables([huge], mode, split="train")


def test_what_fits_is_counted_for_all_processes():
    size = 3 * 2**30
    check_fits(size, size, mode="memory", split="val", device=CPU)
    check_fits(size, None, mode="memory", split="val", device=CPU, processes=9)
    with pytest.raises(ConfigError, match="needs 3 GiB; 6 GiB for 2 processes, 3 GiB of cpu memory free") as caught:
        check_fits(size, size, mode="memory", split="val", device=CPU, processes=2)
    assert "features.placement=mapped" in str(caught.value)
    assert free_on(torch.device("meta")) is None
