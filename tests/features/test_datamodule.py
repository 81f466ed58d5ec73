"""The two DataModules give the same features, on any number of ranks, and never hand a backbone to a probe."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.features.extract import extract
from diffprobe.features.live import LiveFeatures
from diffprobe.features.stored import StoredFeatures

SPLITS = ("train", "val", "test")


def test_live_and_stored_features_are_equal_for_all_splits_and_cells(both, by_key, assert_same):
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


@pytest.mark.parametrize("kind", [0, 1])
def test_evaluation_gives_each_sample_once_on_two_and_three_ranks(both, shared, kind, by_key, assert_same):
    source = both[kind]
    whole = by_key(source.batches("test") if kind == 0 else source.loader("test", shuffle=False))
    for world_size in (2, 3):
        together = []
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size}
            together += source.batches("test", **place) if kind == 0 else source.loader("test", shuffle=False, **place)
        assert_same(whole, by_key(together))  # by_key refuses a duplicate key


@pytest.mark.parametrize("kind", [0, 1])
def test_an_odd_count_is_evaluated_exactly_once_on_two_ranks(shared, kind):
    parts = shared(data_limit=3, features_taps=("mid_block",))
    extract(*parts, progress=False)
    source = (LiveFeatures, StoredFeatures)[kind](*parts)
    loaders = [source.loader("val", shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    keys = [key for loader in loaders for batch in loader for key in batch.keys]
    assert len(keys) == 3 and len(set(keys)) == 3


@pytest.mark.parametrize("kind", [0, 1])
def test_training_gives_every_rank_equally_many_batches_and_samples(shared, kind):
    parts = shared(data_limit=7, data_batch_size=2, features_taps=("mid_block",))
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
def test_training_order_is_seeded_by_seed_and_epoch(both, shared, kind):
    source, again = both[kind], type(both[kind])(*shared(), seed=3)

    def order(epoch, source=source):
        return [key for batch in source.loader("train", shuffle=True, epoch=epoch) for key in batch.keys]

    first = order(0)
    assert first == order(0, again)
    assert first != order(1)
    assert sorted(first) == sorted(order(1))
    again.seed = 4
    assert first != order(0, again)


def test_more_ranks_than_samples_are_refused(shared):
    parts = shared(data_limit=1)
    extract(*parts, progress=False)
    for source in (LiveFeatures(*parts), StoredFeatures(*parts)):
        with pytest.raises(ConfigError, match="1 samples .* 2 processes"):
            list(source.loader("val", shuffle=False, rank=0, world_size=2))


def test_cells_can_be_chosen_alike(both, shared):
    for kind in (LiveFeatures, StoredFeatures):
        source = kind(*shared(), cells=["mid_block@t400"])
        assert list(source.widths) == ["mid_block@t400:empty:mean"]
        assert list(source.table("val").features) == ["mid_block@t400:empty:mean"]
        with pytest.raises(UnknownName, match="mid_block@t999"):
            kind(*shared(), cells=["mid_block@t999"]).setup()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_training_run_holds_no_backbone(both, tmp_path, kind, make_trainer, probe_class):
    source = both[kind]
    cell = "mid_block@t400:empty:mean"
    probe = probe_class(cell, source.widths[cell], len(source.classes))
    trainer = make_trainer(num_sanity_val_steps=0)
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
def test_a_run_stopped_inside_an_epoch_goes_on_with_unseen_batches(
    both, shared, tmp_path, kind, make_trainer, probe_class
):
    cell = "mid_block@t400:empty:mean"
    source = both[kind]
    torch.manual_seed(0)
    whole = probe_class(cell, source.widths[cell], len(source.classes))
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    make_trainer(limit_val_batches=0).fit(whole, source)

    class Killed(probe_class):
        def training_step(self, batch, index):
            if len(self.seen) == n:
                raise RuntimeError("the machine went away")
            return super().training_step(batch, index)

    n = len(whole.seen) // 2 + 1  # one batch into the second epoch
    first = Killed(cell, source.widths[cell], len(source.classes))
    first.load_state_dict(start)
    saver = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=n)
    with pytest.raises(RuntimeError, match="went away"):
        make_trainer(limit_val_batches=0, callbacks=[saver]).fit(first, type(source)(*shared(), seed=3))
    second = probe_class(cell, source.widths[cell], len(source.classes))
    again = type(source)(*shared(), seed=3)
    make_trainer(limit_val_batches=0).fit(second, again, ckpt_path=tmp_path / "middle.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.allclose(second.head.weight, whole.head.weight, atol=1e-6)


def test_both_survive_pickling_without_their_backbone_and_files(both):
    import pickle

    for source in both:
        source.setup()
        copy = pickle.loads(pickle.dumps(source))
        assert "extractor" not in vars(copy.request)
        assert copy.widths == source.widths
