import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, EmptyClass, SampleError, UnknownName
from diffprobe.core.rng import derive_seed
from diffprobe.generative.image_table import ImageTableData, RowIndexLoader, balance_weights, load_table
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.stream import SampleStream
from diffprobe.shards.writer import write_shard


@pytest.fixture
def odd_shards(tmp_path):
    """Two samples in train, the first without a caption, and a val split of one that is not an image."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    good = (tmp_path / "image.png").read_bytes()
    without, captioned = json.dumps({}).encode(), json.dumps({"caption": "a cat"}).encode()
    write_shard(
        tmp_path / "train-0000.tar", [("a", {"png": good, "json": without}), ("b", {"png": good, "json": captioned})]
    )
    write_shard(tmp_path / "val-0000.tar", [("c", {"png": b"no image", "json": captioned})])
    build_index(tmp_path, name="odd", licence="CC0-1.0", on_error="skip")
    return tmp_path


def test_a_table_is_what_the_stream_gives(tiny_shards):
    table = load_table(DataConfig(path=str(tiny_shards)), "train", resolution=16)
    samples = list(SampleStream(ShardSet.load(tiny_shards), "train", resolution=16))
    assert table.keys == [sample.key for sample in samples] and len(table) == 16
    assert table.images.shape == (16, 3, 16, 16) and table.images.dtype == torch.uint8
    for row, sample in enumerate(samples):
        assert np.array_equal(table.images[row].permute(1, 2, 0).numpy(), np.asarray(sample.image))
        assert table.captions[row] == sample.captions and table.captions[row][0] == sample.caption
        assert table.attributes[row] == sample.attributes
    rows = torch.tensor([3, 1])
    assert torch.equal(table.to_float(rows) * 255, table.images[rows].float()) and table.to_float(rows).max() == 1


def test_a_limit_takes_the_first_samples(tiny_shards):
    whole = load_table(DataConfig(path=str(tiny_shards)), "train", resolution=16)
    assert load_table(DataConfig(path=str(tiny_shards), limit=3), "train", resolution=16).keys == whole.keys[:3]


def test_unusable_splits_are_reported(tiny_shards, odd_shards, caplog):
    odd = DataConfig(path=str(odd_shards), on_error="skip", batch_size=2)
    with pytest.raises(SampleError, match="1 samples have no caption.*'a'"):
        load_table(odd, "train", resolution=8, captioned=True)
    assert load_table(odd, "train", resolution=8).captions == [(), ("a cat",)]
    with caplog.at_level(logging.WARNING), pytest.raises(EmptyClass, match="split 'val'"):
        load_table(odd, "val", resolution=8)
    assert "'c'" in caplog.text
    with pytest.raises(ConfigError, match="batch_size=17.*16 samples"):
        ImageTableData(DataConfig(path=str(tiny_shards), batch_size=17), resolution=16, seed=0)


def epochs(data: ImageTableData, n: int) -> list[list[int]]:
    loader, found = data.train_dataloader(), []
    for epoch in range(n):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        found.append([int(row) for batch in loader for row in batch])
    return found


def test_the_order_is_fixed_by_seed_and_epoch(tiny_shards):
    data = DataConfig(path=str(tiny_shards), batch_size=5)
    first = epochs(ImageTableData(data, resolution=16, seed=0), 3)
    assert first == epochs(ImageTableData(data, resolution=16, seed=0), 3)
    assert all(len(order) == len(set(order)) == 15 for order in first)  # the last, smaller batch is dropped
    assert len({tuple(order) for order in first}) == 3
    assert first != epochs(ImageTableData(data, resolution=16, seed=1), 3)


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 104)])
def test_an_epoch_goes_on_where_it_was_interrupted(weights):
    def loader(epoch=3):
        return RowIndexLoader(103, 8, seed=5, weights=weights, epoch=epoch)

    whole = [batch.tolist() for batch in loader()]
    assert len(whole) == len(loader()) == 12 and {len(batch) for batch in whole} == {8}
    for n in (1, 5, 12):
        cut = loader()
        assert [batch.tolist() for _, batch in zip(range(n), cut, strict=False)] == whole[:n]
        resumed = loader()
        resumed.load_state_dict(cut.state_dict())
        assert [batch.tolist() for batch in resumed] == whole[n:]
        assert [batch.tolist() for batch in resumed] == whole  # what follows is a whole epoch again
    other = loader(epoch=4)
    other.load_state_dict(cut.state_dict())
    assert len(list(other)) == 12  # the state is that of its epoch alone


def test_the_order_is_that_of_the_weights_that_ship():
    def generator():
        return torch.Generator().manual_seed(derive_seed("order", 5, 2))

    weights = torch.rand(20, generator=torch.Generator().manual_seed(0))
    expected = torch.randperm(20, generator=generator())
    assert torch.equal(torch.cat(list(RowIndexLoader(20, 4, seed=5, epoch=2))), expected)
    expected = torch.multinomial(weights, 20, replacement=True, generator=generator())
    assert torch.equal(torch.cat(list(RowIndexLoader(20, 4, seed=5, weights=weights, epoch=2))), expected)


def test_a_warning_names_loader_processes_that_are_not_started(tiny_shards, caplog):
    with caplog.at_level(logging.WARNING):
        ImageTableData(DataConfig(path=str(tiny_shards), batch_size=5), resolution=16, seed=0)
        assert not caplog.text
        ImageTableData(DataConfig(path=str(tiny_shards), batch_size=5, num_workers=4), resolution=16, seed=0)
    assert "data.num_workers=4" in caplog.text


def test_validation_takes_every_sample_in_order(tiny_shards):
    source = ImageTableData(DataConfig(path=str(tiny_shards), batch_size=3), resolution=16, seed=0)
    assert [batch.tolist() for batch in source.val_dataloader()] == [[0, 1, 2], [3]]


def test_rare_values_are_drawn_by_their_power(tiny_shards):
    samples = [{"base": "walking"}] * 90 + [{"base": "chime"}] * 10 + [{}] * 3
    for power, share in ((0.0, 10 / 103), (1.0, 1 / 5), (0.5, 10**0.5 / (90**0.5 + 10**0.5 + 3))):
        weights = balance_weights(samples, "base", power)
        assert float(weights[90:100].sum() / weights.sum()) == pytest.approx(share, rel=1e-5)
    with pytest.raises(UnknownName, match="colour"):
        balance_weights(samples, "colour", 0.5)


def test_a_sample_without_the_attribute_is_a_group_of_its_own(tiny_shards):
    table = load_table(DataConfig(path=str(tiny_shards)), "train", resolution=16)
    name = next(iter(table.attributes[0]))
    table.attributes[0].clear()
    found = table.groups(name)
    assert found[0] == table.keys[0] and found[1:] == [values[name] for values in table.attributes[1:]]
    assert table.groups(None) == table.keys


def test_balanced_epochs_are_fixed_by_seed_and_epoch(tiny_shards):
    data = DataConfig(path=str(tiny_shards), batch_size=5)
    attribute = next(iter(ImageTableData(data, resolution=16, seed=0).train.attributes[0]))
    first = epochs(ImageTableData(data, resolution=16, seed=0, balance=(attribute, 0.5)), 3)
    assert first == epochs(ImageTableData(data, resolution=16, seed=0, balance=(attribute, 0.5)), 3)
    assert len({tuple(order) for order in first}) == 3 and {len(order) for order in first} == {15}
