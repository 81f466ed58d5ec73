"""A run trains the U-Net, or the transformer where one is set."""

import dataclasses
from typing import Any

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import WeightsMissing
from diffprobe.generative import denoiser, image_table
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.flow_denoiser import FlowDenoiserModule


@pytest.mark.parametrize(("name", "kind"), [("train_flow", FlowDenoiserModule), ("train_text_encoder", DenoiserModule)])
def test_the_module_follows_from_the_settings(name: str, kind: type, tiny_shards) -> None:
    config = load(f"scenes/{name}", [f"data.path={tiny_shards}", "data.batch_size=4"])
    assert isinstance(config, DenoiserTraining)
    module, images = config.make()
    assert type(module) is kind and len(images.train) == 16
    with pytest.raises(WeightsMissing):
        dataclasses.replace(config, autoencoder="nowhere").make()


@pytest.mark.parametrize("name", ["train_flow", "long_tail/plain"])
def test_the_images_that_the_vocabulary_is_learnt_from_are_decoded_once(
    name: str, tiny_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, read = [], image_table.load_table

    def count(data: Any, split: str, **settings: Any) -> image_table.ImageTable:
        decoded.append(split)
        return read(data, split, **settings)

    for module in (denoiser, image_table):
        monkeypatch.setattr(module, "load_table", count)
    settings = [f"data.path={tiny_shards}", "data.batch_size=4"]
    if name == "long_tail/plain":
        settings += ["classes.attribute=colour", "classes.imbalance=1", "classes.min_images=2"]
    config = load(f"scenes/{name}", settings)
    assert isinstance(config, DenoiserTraining)
    module, images = config.make()
    assert decoded == ["train", "val"]
    assert images.train.keys == read(config.data, "train", resolution=module.resolution).keys
    assert not isinstance(module._decoded, image_table.ImageTable)  # is not kept beside the images
