"""A tiny denoiser trained for a few steps on the tiny shards, in the latent space of an untrained autoencoder."""

import dataclasses
from pathlib import Path

import lightning
import pytest
import torch

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import NonFinite, SampleError, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.architectures import BetaSchedule, DenoiserShape
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.image_table import ImageTableData
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

SHAPE = DenoiserShape(
    channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
    text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=5.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("autoencoder")
    vae.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(autoencoder, tiny_shards) -> DenoiserTraining:
    return DenoiserTraining(
        experiment="tiny",
        autoencoder=str(autoencoder),
        data=DataConfig(path=str(tiny_shards), batch_size=8),
        model=SHAPE,
        trainer=TrainerConfig(accelerator="cpu", max_epochs=1, enable_progress_bar=False, log_every_steps=1),
        logger=LoggerConfig(kind="none"),
        warmup_steps=1,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Module, its data, and what was logged, after one epoch of two steps."""
    folder = tmp_path_factory.mktemp("denoiser")
    data = ImageTableData(config.data, resolution=16, seed=0)
    module = DenoiserModule(config)
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=folder)
        trainer.fit(module, datamodule=data)
    return module, data, dict(trainer.callback_metrics), folder


def test_errors_are_those_of_the_forward_process(trained):
    from diffusers import DDPMScheduler

    module, data, _, _ = trained
    captions = ["noto emoji, red round", ""]
    with torch.no_grad():
        clean = module.vae.encode(data.val.to_float(slice(2)) * 2 - 1).latent_dist.mode() * 5.0
        noise, timesteps = torch.randn(clean.shape), torch.tensor([10, 700])
        found = module.errors(clean, captions, timesteps, noise)
        noised = DDPMScheduler.from_config(module.scheduler.config).add_noise(clean, noise, timesteps)
        for row, caption in enumerate(captions):
            tokens = module.tokenizer(caption, padding="max_length", max_length=16, return_tensors="pt").input_ids
            text = module.text_encoder(tokens).last_hidden_state
            one = module.unet(noised[row : row + 1], timesteps[row], text).sample
            assert float(found[row]) == pytest.approx(float((one - noise[row]).square().mean()), rel=1e-4)


def test_validation_has_one_fixed_noise_and_timestep_per_image(trained):
    module, data, logged, _ = trained
    with torch.no_grad():
        clean = module.vae.encode(data.val.to_float(slice(None)) * 2 - 1).latent_dist.mode() * 5.0
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in data.val.keys])
        timesteps = torch.tensor([derive_seed("timestep", key) % 1000 for key in data.val.keys])
        errors = module.errors(clean, [captions[0] for captions in data.val.captions], timesteps, noise)
    assert float(logged["val/mse"]) == pytest.approx(float(errors.mean()), rel=1e-4)
    assert {"train/loss", "train/mse"} <= set(logged)


def test_nothing_of_the_autoencoder_is_trained_or_kept_in_the_checkpoint(trained, autoencoder):
    from diffusers import AutoencoderKL

    module, _, _, folder = trained
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in saved["state_dict"]} == {"unet", "text_encoder"}
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"unet", "text_encoder"}
    before = AutoencoderKL.from_pretrained(autoencoder).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in module.vae.state_dict().items())
    assert not any(value.requires_grad for value in module.vae.parameters())


class Interrupt(lightning.Callback):
    """Stops the run after four steps, as a job's end would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            raise RuntimeError("stopped")


@pytest.mark.slow
@pytest.mark.parametrize(("every", "continued"), [(0, 2), (1, 3)])
def test_with_dropout_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, every, continued):
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(SHAPE, dropout=0.3),
        trainer=dataclasses.replace(config.trainer, max_epochs=3, checkpoint_every_steps=every),
    )
    data = ImageTableData(config.data, resolution=16, seed=0)  # an epoch has 2 steps

    def fit(folder, *, checkpoint=None, callbacks=()):
        module = DenoiserModule(config)
        with quiet():
            trainer = make_trainer(config.trainer, run_dir=folder, callbacks=callbacks)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return module.state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "cut", callbacks=[Interrupt()])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    assert torch.load(last, weights_only=True)["global_step"] == continued
    resumed = fit(tmp_path / "cut", checkpoint=last)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_both_networks_learn(trained, config):
    module, start = trained[0], DenoiserModule(config).state_dict()
    changed = {name.partition(".")[0] for name, value in module.state_dict().items() if not value.equal(start[name])}
    assert changed == {"unet", "text_encoder"}


def test_a_frozen_text_encoder_is_saved_as_it_was(trained, config, tmp_path):
    from safetensors.torch import load_file

    module = trained[0]
    module.save(tmp_path / "first")
    frozen = dataclasses.replace(config, text_encoder=str(tmp_path / "first"), text_learning_rate=0.0, seed=1)
    second = DenoiserModule(frozen)
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=tmp_path, callbacks=[EMACallback(frozen.ema_decay)])
        trainer.fit(second, datamodule=ImageTableData(config.data, resolution=16, seed=0))
    second.save(tmp_path / "second")
    assert all(parameter.grad is None for parameter in second.text_encoder.parameters())
    optimised = {id(value) for group in trainer.optimizers[0].param_groups for value in group["params"]}
    assert optimised == {id(value) for value in second.unet.parameters()}
    for file in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    unets = [load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("first", "second")]
    assert any(not torch.equal(unets[0][name], value) for name, value in unets[1].items())


def test_a_text_encoder_can_stay_at_its_random_weights(config):
    first, second = (
        DenoiserModule(dataclasses.replace(config, text_learning_rate=rate)).text_encoder for rate in (0.0, 1.0)
    )
    for frozen, trained in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(frozen, trained) and trained.requires_grad and not frozen.requires_grad


def test_a_checkpoint_of_another_vocabulary_is_refused(trained, config):
    module = trained[0]
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    other = DenoiserModule(dataclasses.replace(config, model=dataclasses.replace(SHAPE, vocab_size=530)))
    with pytest.raises(WeightsMismatch, match="vocabulary"):
        other.on_load_checkpoint(checkpoint)


def test_the_export_is_a_pipeline_that_samples(trained, tmp_path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors.torch import load_file

    module, _, _, _ = trained
    module.save(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    described = [(tmp_path / part / "config.json").read_text() for part in ("vae", "unet")]
    assert not any("_name_or_path" in text for text in described)  # the VAE was opened from a folder of this machine
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert next(module.unet.parameters()).dtype == torch.float32  # the run's own weights stay as they are
    for name, value in module.unet.state_dict().items():
        torch.testing.assert_close(stored[name].float(), value, atol=1e-4, rtol=1e-3)

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler) and pipeline.vae.config.scaling_factor == 5.0
    assert torch.equal(pipeline.scheduler.alphas_cumprod, module.scheduler.alphas_cumprod)
    text = ["noto emoji, red round", "zebra 猫"]
    assert pipeline.tokenizer(text).input_ids == module.tokenizer(text).input_ids
    assert pipeline.tokenizer.model_max_length == 16

    def sample(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return pipeline(text[0], num_inference_steps=2, generator=generator, output_type="pt").images

    assert sample(0).shape == (1, 3, 16, 16)
    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    wild = dataclasses.replace(config.trainer, learning_rate=1e30, max_epochs=2)
    with pytest.raises(NonFinite, match=r"(nan|inf) after 1 steps") as raised:
        module = DenoiserModule(dataclasses.replace(config, trainer=wild))
        with quiet():
            make_trainer(wild, run_dir=tmp_path).fit(
                module, datamodule=ImageTableData(config.data, resolution=16, seed=0)
            )
    assert "smaller trainer.learning_rate" in raised.value.fix


def test_missing_weights_and_captions_are_reported(config, tmp_path, autoencoder):
    def replaced(**changed):
        return dataclasses.replace(config, **changed)

    with pytest.raises(WeightsMissing, match="train experiment=emoji/train_autoencoder"):
        DenoiserModule(replaced(autoencoder=str(tmp_path)))
    (tmp_path / "config.json").write_bytes((autoencoder / "config.json").read_bytes())
    with pytest.raises(WeightsMissing, match="safetensors"):
        DenoiserModule(replaced(autoencoder=str(tmp_path)))  # a config alone has no weights
    fields = dataclasses.replace(config.data.fields, caption="title", captions="titles")
    with pytest.raises(SampleError, match="16 samples have no caption"):
        DenoiserModule(replaced(data=dataclasses.replace(config.data, fields=fields)))


def test_a_start_under_another_forward_process_is_refused(trained, config, tmp_path):
    trained[0].save(tmp_path)
    DenoiserModule(dataclasses.replace(config, init_from=str(tmp_path)))
    with pytest.raises(WeightsMismatch, match="beta_end.*0.012.*0.02"):
        DenoiserModule(dataclasses.replace(config, init_from=str(tmp_path), noise=BetaSchedule(beta_end=0.02)))


def test_little_noise_hides_the_caption_more_often(config):
    module = DenoiserModule(dataclasses.replace(config, drop_captions=0.1, drop_captions_clean=0.9))
    shares = module.p_empty_caption(torch.tensor([0, 250, 500, 999]))
    torch.testing.assert_close(shares, torch.tensor([0.9, 0.5, 0.1, 0.1]))


def test_every_view_is_encoded_and_the_first_is_the_image(trained):
    module, data, _, _ = trained
    latents = module._latents["train"]
    assert latents.shape[:2] == (len(data.train), module.config.augmentation.n_views)
    with torch.no_grad():
        modes = module.vae.encode(data.train.to_float(slice(0, 2)) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latents[:2, 0], modes * module.vae.config.scaling_factor)
    assert not torch.allclose(latents[:, 0], latents[:, 1], atol=1e-2)
