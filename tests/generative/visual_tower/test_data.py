"""Images stream with the feature maps of the frozen diffusion model."""

import dataclasses

import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.schema import FieldsConfig
from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.generative.visual_tower.data import TowerData


def test_maps_are_those_of_the_extractor_and_do_not_depend_on_the_batch(make_config) -> None:
    data = TowerData(make_config())
    batches = [data.read(batch) for batch in data.val_dataloader()]
    keys = [key for batch in batches for key in batch.keys]
    assert keys == list(data.val) and set(data.groups) == set(keys)
    extractor = DiffusionFeatures.from_pretrained(
        "emoji-sd", taps=["up_blocks.0"], timesteps=[25], pool="none", device="cpu"
    )
    one = batches[0]
    (maps,) = extractor(one.images[1:2], keys=one.keys[1:2]).values()
    torch.testing.assert_close(one.maps[1:2], maps, atol=1e-4, rtol=1e-4)
    assert not one.maps.requires_grad and one.maps.shape[1:] == (88, 4, 4)
    assert one.captions == [data.val[key] for key in one.keys]


def test_the_training_order_is_that_of_seed_and_epoch(make_config) -> None:
    def order(seed: int) -> list[str]:
        return [key for batch in TowerData(make_config(seed=seed)).train_dataloader() for key in batch.keys]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1)) and len(order(0)) == 16


def test_samples_without_a_caption_and_splits_smaller_than_a_batch_are_refused(make_config) -> None:
    config = make_config()
    uncaptioned = dataclasses.replace(config.data, fields=FieldsConfig(caption="x", captions="y"))
    with pytest.raises(SampleError, match="16 samples have no caption, the first is 'tiny/"):
        TowerData(dataclasses.replace(config, data=uncaptioned))
    with pytest.raises(ConfigError, match="batch_size=17 is more than the 16 samples"):
        TowerData(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=17)))
