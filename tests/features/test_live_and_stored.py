"""The two DataModules give the same features, on any number of ranks, and never hand a backbone to a probe."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from diffprobe.core.errors import ConfigError, StoreMismatch, UnknownName
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.extract import extract
from diffprobe.features.live import LiveFeatures
from diffprobe.features.stored import Rows, StoredFeatures, open_rows

SPLITS = ("train", "val", "test")


@pytest.fixture
def both(filled):
    """Live and stored features of one store, which these tests share."""
    return LiveFeatures(*filled, seed=3), StoredFeatures(*filled, seed=3)


@pytest.fixture
def configs(filled, configs):
    return lambda **changes: configs(**{"features_store": filled[2].store, **changes})


def by_key(batches):
    rows = {}
    for batch in batches:
        assert isinstance(batch, FeatureBatch)
        for i, key in enumerate(batch.keys):
            assert key not in rows
            features = {cell: values[i] for cell, values in batch.features.items()}
            rows[key] = (features, int(batch.label[i]), {name: int(v[i]) for name, v in batch.attributes.items()})
    return rows


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, (features, label, attributes) in first.items():
        assert (label, attributes) == second[key][1:]
        assert features.keys() == second[key][0].keys()
        for cell, values in features.items():
            torch.testing.assert_close(values, second[key][0][cell], atol=1e-5, rtol=0)


def test_live_and_stored_features_are_equal_for_all_splits_and_cells(both):
    live, stored = both
    assert live.cells == stored.cells and live.widths == stored.widths and len(live.cells) == 4
    assert live.classes == stored.classes and live.attributes == stored.attributes
    for split in SPLITS:
        assert_same(by_key(live.batches(split)), by_key(stored.loader(split, shuffle=False)))


def test_tables_are_equal_with_captions_and_shards(both):
    live, stored = both
    for split in SPLITS:
        one, two = live.table(split), stored.table(split)
        assert (one.keys, one.captions, one.shards) == (two.keys, two.captions, two.shards)
        assert all(caption for caption in two.captions)
        for cell in one.features:
            torch.testing.assert_close(one.features[cell], two.features[cell], atol=1e-5, rtol=0)


def test_cells_differ_and_are_no_constants(both):
    _, stored = both
    table = stored.table("train")
    for values in table.features.values():
        assert values.std(0).mean() > 1e-4
    first, second = (table.features[f"mid_block@t{t}:empty:mean"] for t in (20, 400))
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("changes", [{"data_batch_size": 3}, {"data_num_workers": 2}, {"data_shuffle_buffer": 0}])
def test_live_features_do_not_depend_on_how_they_are_loaded(both, configs, changes):
    live, _ = both
    other = LiveFeatures(*configs(**changes), seed=8)
    assert_same(by_key(live.batches("val")), by_key(other.batches("val")))
    images = other.loader("train", shuffle=True)
    assert_same(by_key(live.batches("train")), by_key(other.on_after_batch_transfer(batch, 0) for batch in images))


@pytest.mark.parametrize("kind", [0, 1])
def test_evaluation_gives_each_sample_once_on_two_and_three_ranks(both, configs, kind):
    source = both[kind]
    whole = by_key(source.batches("test") if kind == 0 else source.loader("test", shuffle=False))
    for world_size in (2, 3):
        together = []
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size}
            together += source.batches("test", **place) if kind == 0 else source.loader("test", shuffle=False, **place)
        assert_same(whole, by_key(together))  # by_key refuses a key that comes twice


@pytest.mark.parametrize("kind", [0, 1])
def test_an_odd_count_is_evaluated_exactly_once_on_two_ranks(configs, kind):
    parts = configs(data_limit=3, features_taps=("mid_block",))
    extract(*parts, progress=False)
    source = (LiveFeatures, StoredFeatures)[kind](*parts)
    loaders = [source.loader("val", shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    keys = [key for loader in loaders for batch in loader for key in batch.keys]
    assert len(keys) == 3 and len(set(keys)) == 3


@pytest.mark.parametrize("kind", [0, 1])
def test_training_gives_every_rank_equally_many_batches_and_samples(configs, kind):
    parts = configs(data_limit=7, data_batch_size=2, features_taps=("mid_block",))
    extract(*parts, progress=False)
    source = (LiveFeatures, StoredFeatures)[kind](*parts)
    for epoch in range(2):
        loaders = [source.loader("train", shuffle=True, rank=r, world_size=2, epoch=epoch) for r in range(2)]
        sizes = [[len(batch.keys) for batch in loader] for loader in loaders]
        assert sizes == [[2, 2], [2, 2]]
        assert [len(loader) for loader in loaders] == [2, 2]
        keys = {key for loader in loaders for batch in loader for key in batch.keys}
        assert len(keys) == 7


@pytest.mark.parametrize("kind", [0, 1])
def test_training_order_is_seeded_by_seed_and_epoch(both, configs, kind):
    source = both[kind]

    def order(epoch, seed=3):
        again = type(source)(*configs(), seed=seed)
        return [key for batch in again.loader("train", shuffle=True, epoch=epoch) for key in batch.keys]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=4)
    assert sorted(order(0)) == sorted(order(1))


def test_more_ranks_than_samples_are_refused(configs):
    parts = configs(data_limit=1)
    extract(*parts, progress=False)
    for source in (LiveFeatures(*parts), StoredFeatures(*parts)):
        with pytest.raises(ConfigError, match="1 samples can't be shared by 2 processes"):
            list(source.loader("val", shuffle=False, rank=0, world_size=2))


def test_cells_can_be_chosen_alike(both, configs):
    for kind in (LiveFeatures, StoredFeatures):
        source = kind(*configs(), cells=["mid_block@t400"])
        assert list(source.widths) == ["mid_block@t400:empty:mean"]
        assert list(source.table("val").features) == ["mid_block@t400:empty:mean"]
        with pytest.raises(UnknownName, match="mid_block@t999"):
            kind(*configs(), cells=["mid_block@t999"]).setup()


def test_mapped_and_in_memory_rows_are_the_same(both):
    _, stored = both
    tables = list(stored.store.iter_shards("train"))
    assert len(tables) == 3
    memory, mapped = Rows(tables), Rows(tables, in_memory_bytes=0)
    assert len(mapped.tables) == 3 and len(memory.tables) == 1 and mapped.n == memory.n
    rows = torch.randperm(mapped.n, generator=torch.Generator().manual_seed(0))
    one, two = memory.take(rows), mapped.take(rows)
    assert one.keys == two.keys
    assert torch.equal(one.label, two.label)
    assert all(torch.equal(one.features[cell], two.features[cell]) for cell in one.features)


def test_a_store_can_be_read_without_a_backbone(both):
    _, stored = both
    rows = open_rows(stored.store.path, "val", ["mid_block@t20"])
    assert rows.n == len(stored.table("val"))


class Probe(lightning.LightningModule):
    """A linear probe that writes down what it saw."""

    def __init__(self, cell, width, n_classes):
        super().__init__()
        self.cell, self.head, self.seen = cell, nn.Linear(width, n_classes), []

    def training_step(self, batch, index):
        assert isinstance(batch, FeatureBatch)
        self.seen.append(tuple(batch.keys))
        return nn.functional.cross_entropy(self.head(batch.features[self.cell]), batch.label.clamp(min=0))

    def validation_step(self, batch, index):
        assert isinstance(batch, FeatureBatch)
        self.seen.append(("val", *batch.keys))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_trainer(folder, **options):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    return lightning.Trainer(default_root_dir=folder, enable_model_summary=False, **{**defaults, **options})


@pytest.mark.parametrize("kind", [0, 1])
def test_a_training_run_holds_no_backbone(both, tmp_path, kind):
    source = both[kind]
    cell = "mid_block@t400:empty:mean"
    probe = Probe(cell, source.widths[cell], len(source.classes))
    trainer = make_trainer(tmp_path, num_sanity_val_steps=0)
    trainer.fit(probe, source)
    trainer.save_checkpoint(tmp_path / "probe.ckpt")
    assert [name for name, _ in probe.named_parameters()] == ["head.weight", "head.bias"]
    checkpoint = torch.load(tmp_path / "probe.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["head.weight", "head.bias"]
    assert (tmp_path / "probe.ckpt").stat().st_size < 50_000
    assert not isinstance(source, nn.Module)
    train = [keys for keys in probe.seen if keys[0] != "val"]
    epochs = [sum(train[: len(train) // 2], ()), sum(train[len(train) // 2 :], ())]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


@pytest.mark.parametrize("kind", [0, 1])
def test_a_run_stopped_inside_an_epoch_goes_on_with_the_batches_it_has_not_seen(both, configs, tmp_path, kind):
    cell = "mid_block@t400:empty:mean"
    source = both[kind]
    torch.manual_seed(0)
    whole = Probe(cell, source.widths[cell], len(source.classes))
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    make_trainer(tmp_path, limit_val_batches=0).fit(whole, source)

    class Killed(Probe):
        def training_step(self, batch, index):
            if len(self.seen) == n:
                raise RuntimeError("the machine went away")
            return super().training_step(batch, index)

    n = len(whole.seen) // 2 + 1  # one batch into the second epoch
    first = Killed(cell, source.widths[cell], len(source.classes))
    first.load_state_dict(start)
    saver = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=n)
    with pytest.raises(RuntimeError, match="went away"):
        make_trainer(tmp_path, limit_val_batches=0, callbacks=[saver]).fit(first, type(source)(*configs(), seed=3))
    second = Probe(cell, source.widths[cell], len(source.classes))
    again = type(source)(*configs(), seed=3)
    make_trainer(tmp_path, limit_val_batches=0).fit(second, again, ckpt_path=tmp_path / "middle.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.allclose(second.head.weight, whole.head.weight, atol=1e-6)


def test_live_features_refuse_a_precision_that_rounds_the_images(both, tmp_path):
    live, _ = both
    probe = Probe("mid_block@t20:empty:mean", live.widths["mid_block@t20:empty:mean"], len(live.classes))
    with pytest.raises(ConfigError, match="bf16-true converts the images"):
        make_trainer(tmp_path, precision="bf16-true").fit(probe, live)


def test_bf16_mixed_leaves_the_features_in_full_precision(both, tmp_path):
    live, stored = both
    seen = {}

    class Spy(Probe):
        def training_step(self, batch, index):
            seen.update({key: batch.features[self.cell][i].clone() for i, key in enumerate(batch.keys)})
            return super().training_step(batch, index)

    cell = "mid_block@t20:empty:mean"
    probe = Spy(cell, live.widths[cell], len(live.classes))
    make_trainer(tmp_path, precision="bf16-mixed", max_epochs=1).fit(probe, live)
    table = stored.table("train")
    for key, values in zip(table.keys, table.features[cell], strict=True):
        torch.testing.assert_close(seen[key], values, atol=1e-5, rtol=0)


def test_stored_features_of_other_settings_stop_a_run_before_it_starts(both, configs, tmp_path):
    cell = "mid_block@t20:empty:mean"
    probe = Probe(cell, 8, 3)
    with pytest.raises(StoreMismatch, match="seed: store 0, asked 7"):
        make_trainer(tmp_path).fit(probe, StoredFeatures(*configs(features_seed=7)))


def test_both_survive_pickling_without_their_backbone_and_files(both):
    import pickle

    for source in both:
        source.setup()
        copy = pickle.loads(pickle.dumps(source))
        assert "extractor" not in vars(copy.request)
        assert copy.widths == source.widths
