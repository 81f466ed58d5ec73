from dataclasses import replace

import pytest
import torch

from diffprobe.config.schema import LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import read_result
from diffprobe.generative.rendered_scenes import RenderedScenesConfig, uniform_scenes
from diffprobe.generative.scene_reader import SceneReaderShape, load_reader, to_tensor
from diffprobe.generative.scene_reader_training import DegradationConfig, ReaderModule, ReaderTraining
from diffprobe.runs.train_generative import train_generative
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import load_world


def training(folder, **settings):
    config = ReaderTraining(
        experiment="tiny/reader",
        data=RenderedScenesConfig(n_train=64, n_val=16, batch_size=16, resolution=32),
        model=SceneReaderShape(channels=(8, 8), hidden=16, norm_groups=4),
        trainer=TrainerConfig(accelerator="cpu", max_epochs=2, enable_progress_bar=False, log_every_steps=1),
        logger=LoggerConfig(kind="none"),
        warmup_steps=1,
        ema_decay=0.9,
        output=str(folder),
    )
    return replace(config, **settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_degradations_keep_shape_and_range_and_can_be_turned_off():
    images = torch.rand(4, 3, 32, 32)
    strong = DegradationConfig().apply(images, generator())
    assert strong.shape == images.shape and 0 <= strong.min() and strong.max() <= 1
    assert torch.equal(strong, DegradationConfig().apply(images, generator()))
    none = DegradationConfig(blur=0, noise=0, brightness=0, contrast=0, smoothing=0, blended=0)
    assert torch.allclose(none.apply(images, generator()), images, atol=1e-6)
    blurred = replace(none, blur=2.0).apply(images, generator())
    assert blurred.std() < 0.9 * images.std() and torch.allclose(blurred.mean(), images.mean(), atol=0.01)
    with pytest.raises(ConfigError, match=r"noise=1\.5"):
        DegradationConfig(noise=1.5)


def test_blended_stripes_are_labelled_by_half_of_their_contrast(tmp_path):
    config = training(tmp_path, degradation=DegradationConfig(blended=1.0))
    module, source = config.make()
    scenes = uniform_scenes(module.spec, 0, source.train[:32])
    images = to_tensor(render(module.spec, scenes, resolution=32).images)
    found, textures = module._blend(scenes, images, generator())
    shares = (torch.rand(32, generator=(same := generator())), torch.rand(32, generator=same))[1]
    assert ((shares >= 0.5).long().numpy() == textures).all()
    assert not torch.equal(found, images)
    assert (found - images).abs().mean((1, 2, 3)).max() < 0.06  # nothing but the clothes changes


def test_weights_are_of_the_seed(tmp_path):
    one, two = (ReaderModule(training(tmp_path)).state_dict() for _ in range(2))
    other = ReaderModule(training(tmp_path, seed=1)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match="ema_decay=1"):
        training(tmp_path, ema_decay=1.0)


@pytest.mark.slow
def test_a_run_writes_a_reader_and_its_accuracies(tmp_path):
    path = train_generative(training(tmp_path))
    result = read_result(path)
    names = {record.name for record in result.metrics}
    assert {f"accuracy_{name}" for name in FACTORS} | {f"accuracy_{name}_degraded" for name in FACTORS} <= names
    assert result.artifacts["input/world"] == load_world().digest
    assert load_reader(path.parent, load_world()).resolution == 32


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    whole = train_generative(training(tmp_path / "whole"))
    trainer = training(tmp_path).trainer
    part = training(tmp_path / "part", trainer=replace(trainer, checkpoint_every_steps=3))
    calls = []
    step = ReaderModule.training_step

    def stopping(self, rows, batch_idx):
        calls.append(self.global_step)
        if self.global_step == 5 and calls.count(5) == 1:
            raise KeyboardInterrupt
        return step(self, rows, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReaderModule, "training_step", stopping)
        with pytest.raises(BaseException):  # noqa: B017
            train_generative(part)
        again = train_generative(part)
    assert calls.count(4) == 2 and calls.count(0) == 1  # it went on from step 3
    one, two = (load_reader(path.parent, load_world()).state_dict() for path in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
