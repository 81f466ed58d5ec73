"""A run trains the U-Net, or the transformer where one is set."""

import dataclasses

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import WeightsMissing
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
