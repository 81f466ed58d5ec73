"""Live features: unchanged by how they are loaded, full precision, no more of the backbone than is read."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.features.live import LiveFeatures


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"data_batch_size": 3}, {"data_num_workers": 2}, {"data_shuffle_buffer": 0}])
def test_live_features_do_not_depend_on_how_they_are_loaded(both, shared, changes, by_key, assert_same):
    live, _ = both
    other = LiveFeatures(*shared(**changes), seed=8)
    assert_same(by_key(live.batches("val")), by_key(other.batches("val")))
    images = other.loader("train", shuffle=True)
    assert_same(by_key(live.batches("train")), by_key(other.on_after_batch_transfer(batch, 0) for batch in images))


def test_live_features_of_one_cell_run_the_backbone_no_further_and_are_the_same(both, shared):
    live = LiveFeatures(*shared(), cells=["mid_block@t400"])
    live.setup()
    assert [cell.name for cell in live.request.extractor.cells] == list(live.widths) == ["mid_block@t400:empty:mean"]
    whole = both[1].table("val").features["mid_block@t400:empty:mean"]
    torch.testing.assert_close(live.table("val").features["mid_block@t400:empty:mean"], whole, atol=1e-5, rtol=0)


def test_live_features_refuse_a_precision_that_rounds_the_images(both, make_trainer, probe_class):
    live, _ = both
    probe = probe_class("mid_block@t20:empty:mean", live.widths["mid_block@t20:empty:mean"], len(live.classes))
    with pytest.raises(ConfigError, match="trainer.precision=bf16-true"):
        make_trainer(precision="bf16-true").fit(probe, live)


def test_outside_of_a_trainer_the_backbone_stays_where_it_is(both, shared, by_key, assert_same):
    live = LiveFeatures(*shared())
    live.setup()
    live.request.extractor.to("cpu:0")
    assert_same(by_key(live.batches("val")), by_key(both[0].batches("val")))
    assert live.request.extractor.device == torch.device("cpu:0")  # images come on "cpu"


def test_a_backbone_that_was_asked_to_be_elsewhere_is_not_moved(shared):
    live = LiveFeatures(*shared(backbone_device="cpu"))
    (batch, *_) = live.loader("val", shuffle=False)
    with pytest.raises(ConfigError, match="backbone.device=cpu, .*meta"):
        live.on_after_batch_transfer(batch.to("meta"), 0)
    assert live.on_after_batch_transfer(batch, 0).keys == batch.keys


def test_bf16_mixed_leaves_the_features_in_full_precision(both, make_trainer, probe_class):
    live, stored = both
    seen = {}

    class Spy(probe_class):
        def training_step(self, batch, index):
            seen.update({key: batch.features[self.cell][i].clone() for i, key in enumerate(batch.keys)})
            return super().training_step(batch, index)

    cell = "mid_block@t20:empty:mean"
    probe = Spy(cell, live.widths[cell], len(live.classes))
    make_trainer(precision="bf16-mixed", max_epochs=1).fit(probe, live)
    table = stored.table("train")
    for key, values in zip(table.keys, table.features[cell], strict=True):
        torch.testing.assert_close(seen[key], values, atol=1e-5, rtol=0)
