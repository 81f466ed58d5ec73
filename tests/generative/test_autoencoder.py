import dataclasses
import math

import lightning
import pytest
import torch

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import NonFinite
from diffprobe.generative.autoencoder import (
    AutoencoderModule,
    AutoencoderShape,
    AutoencoderTraining,
    edge_loss,
    psnr_db,
    reconstruct,
)  # fmt: skip
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.image_table import ImageTableData
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

SHAPE = AutoencoderShape(resolution=16, channels=(8, 8), latent_channels=2, norm_groups=4)


@pytest.fixture
def config(tiny_shards):
    return AutoencoderTraining(
        experiment="tiny",
        data=DataConfig(path=str(tiny_shards), batch_size=8),
        model=SHAPE,
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=25, learning_rate=2e-2, enable_progress_bar=False, log_every_steps=1
        ),
        logger=LoggerConfig(kind="none"),
        warmup_steps=2,
    )


def fit(config, tmp_path, checkpoint=None, **overrides):
    data = ImageTableData(config.data, resolution=config.model.resolution, seed=config.seed)
    module = AutoencoderModule(config)
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=tmp_path, **overrides)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, module, data


def test_edges_are_the_differences_of_neighbours():
    flat, step = torch.full((1, 1, 2, 4), 0.3), torch.tensor([[[[0.0, 0, 1, 1], [0, 0, 1, 1]]]])
    assert edge_loss(step, step + 0.5) == pytest.approx(0, abs=1e-7)  # a constant offset is not an edge
    assert edge_loss(step, flat) == pytest.approx(1 / 3)  # one of three horizontal differences, no vertical one


def test_psnr_is_that_of_each_image():
    target = torch.rand(2, 3, 4, 4)
    output = target.clone()
    output[0] += 0.1
    assert psnr_db(output, target)[0] == pytest.approx(20, abs=1e-3)  # mse 0.01
    assert psnr_db(output, target)[1] == pytest.approx(100)  # equal images have no infinity
    mse = (target[1] - output[0]).square().mean()
    assert psnr_db(output[:1], target[1:])[0] == pytest.approx(-10 * math.log10(mse), abs=1e-3)


def test_weights_are_the_seeds_and_the_global_generator_is_left_alone(config):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    one = AutoencoderModule(config).state_dict()
    assert torch.equal(torch.rand(2), expected)
    two = AutoencoderModule(config).state_dict()
    other = AutoencoderModule(dataclasses.replace(config, seed=1)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_augmentation_mirrors_and_swaps_colours_of_some(config):
    module = AutoencoderModule(config)
    images = torch.rand(64, 3, 4, 4)
    changed = module._augment(images)
    assert torch.equal(changed, module._augment(images))  # a function of seed and step
    straight, mirrored = images, images.flip(-1)
    kept = (changed == straight).flatten(1).all(1) | (changed == mirrored).flatten(1).all(1)
    assert 10 < kept.sum() < 64
    sums, before = (x.sum((2, 3)).sort(1).values for x in (changed, images))
    torch.testing.assert_close(sums, before)  # channels change places, nothing is lost


@pytest.mark.slow
def test_training_reconstructs_and_the_export_is_scaled(config, tmp_path):
    from diffusers import AutoencoderKL

    start = AutoencoderModule(config)
    trainer, module, data = fit(config, tmp_path)
    images = data.val.to_float(slice(None))
    before, after = (psnr_db(reconstruct(m.vae, images), images).mean() for m in (start, module))
    assert after > before + 4
    assert trainer.callback_metrics["val/psnr_db"] == pytest.approx(float(after), abs=1e-3)
    module.save(tmp_path / "weights")
    saved = AutoencoderKL.from_pretrained(tmp_path / "weights")
    assert saved.config.sample_size == 16 and saved.config.latent_channels == 2
    assert torch.equal(reconstruct(saved, images), reconstruct(module.vae, images))
    with torch.no_grad():
        latents = (
            saved.encode(data.train.to_float(slice(None)) * 2 - 1).latent_dist.mode() * saved.config.scaling_factor
        )
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


class Interrupt(lightning.Callback):
    """Stops the run after some steps, as a job's end would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize(("every", "stop", "continued"), [(0, 6, 4), (2, 7, 6), (4, 5, 4)])
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, every, stop, continued):
    """An epoch has 4 steps: the checkpoint is that of its end, of its middle, and of its last step."""
    trainer = dataclasses.replace(config.trainer, max_epochs=3, checkpoint_every_steps=every)
    config = dataclasses.replace(config, trainer=trainer, data=dataclasses.replace(config.data, batch_size=4))
    _, whole, _ = fit(config, tmp_path / "whole", callbacks=[EMACallback(0.9)])
    with pytest.raises(RuntimeError, match="stopped"):
        fit(config, tmp_path / "cut", callbacks=[EMACallback(0.9), Interrupt(stop)])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    assert torch.load(last, weights_only=True)["global_step"] == continued
    _, resumed, _ = fit(config, tmp_path / "cut", last, callbacks=[EMACallback(0.9)])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    wild = dataclasses.replace(config.trainer, learning_rate=1e30, max_epochs=2)
    with pytest.raises(NonFinite, match=r"(nan|inf) after 1 steps") as raised:
        fit(dataclasses.replace(config, trainer=wild), tmp_path)
    assert "smaller trainer.learning_rate" in raised.value.fix


def test_losses_are_logged_and_weighted(config, tmp_path):
    short = dataclasses.replace(config.trainer, max_epochs=1)
    config = dataclasses.replace(config, trainer=short, mse_weight=0, l1_weight=0, edge_weight=0, kl_weight=0)
    trainer, module, _ = fit(config, tmp_path)
    logged = trainer.callback_metrics
    assert {"train/mse", "train/l1", "train/edge", "train/kl"} <= set(logged)
    start = AutoencoderModule(config).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())  # nothing to learn from
