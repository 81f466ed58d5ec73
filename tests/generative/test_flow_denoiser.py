"""A tiny flow transformer trained on the tiny shards: read by the SD3 family, sampled, resumed, and bad settings."""

import dataclasses
from pathlib import Path

import lightning
import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.flow_denoiser import FlowDenoiserModule
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.objectives.base import ObjectiveConfig
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.generated_images import generated_latents
from diffprobe.scoring.noise_sets import stack_noise
from diffprobe.training.checkpoint import find_checkpoint
from diffprobe.training.trainer import make_trainer, quiet

TEXT = DenoiserShape(text_width=16, text_layers=2, text_heads=2, vocab_size=540, max_tokens=16)
SHAPE = TransformerShape(layers=2, heads=2, head_width=8)
CAPTIONS = ["noto emoji, red round", ""]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_shards) -> DenoiserTraining:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=5.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("autoencoder")
    vae.save_pretrained(path)
    return DenoiserTraining(
        experiment="tiny",
        autoencoder=str(path),
        data=DataConfig(path=str(tiny_shards), batch_size=8),
        model=TEXT,
        transformer=SHAPE,
        objective=ObjectiveConfig(name="flow_matching", params={"shift": 2.0}),
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=2, learning_rate=1e-2, enable_progress_bar=False, log_every_steps=1
        ),
        logger=LoggerConfig(kind="none"),
        warmup_steps=1,
    )


def fit(config: DenoiserTraining, folder: Path, *, checkpoint=None, callbacks=()) -> FlowDenoiserModule:
    module, data = config.make()
    assert isinstance(module, FlowDenoiserModule)
    with quiet():
        trainer = make_trainer(config.trainer, run_dir=folder, callbacks=callbacks)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    module.logged = dict(trainer.callback_metrics)
    return module


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> FlowDenoiserModule:
    module = fit(config, tmp_path_factory.mktemp("run"), callbacks=[EMACallback(config.ema_decay)])
    with torch.no_grad():  # weights are saved in half precision
        for part in (module.transformer, module.text_encoder, module.text_encoder_2, module.vae):
            for value in [*part.parameters(), *part.buffers()]:
                if value.is_floating_point():
                    value.copy_(value.half().float())
    return module.eval()


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "flow"
    trained.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved) -> DenoisingError:
    return DenoisingError.from_pretrained(str(saved), device="cpu")


def test_all_parts_learn_and_nothing_else_is_trained(trained, config):
    start = FlowDenoiserModule(config).state_dict()
    changed = {name.partition(".")[0] for name, x in trained.state_dict().items() if not x.equal(start[name].half())}
    parts = {"transformer", "text_encoder", "text_encoder_2"}
    assert changed == parts == {name.partition(".")[0] for name, _ in trained.named_parameters()}
    assert {"train/loss", "val/mse"} <= set(trained.logged)


def test_errors_are_those_of_the_path_and_of_the_network_with_all_zero_tokens(trained):
    """The network runs on 256 tokens of zeros and the attention of diffusers here, on one token in training."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 2, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([30, 820])
    with torch.no_grad():
        found = trained.errors(clean, CAPTIONS, timesteps, noise)
        for row, caption in enumerate(CAPTIONS):
            s = timesteps[row] / 1000
            ids = trained.tokenizer(caption, padding="max_length", max_length=16, return_tensors="pt").input_ids
            texts = [encoder(ids, output_hidden_states=True) for encoder in trained.trained_parts()[1]]
            states = torch.cat([text.hidden_states[-2] for text in texts], dim=-1)
            velocity = trained.transformer(
                ((1 - s) * clean + s * noise)[row : row + 1],
                encoder_hidden_states=torch.cat([states, torch.zeros(1, 256, 32)], dim=1),
                pooled_projections=torch.cat([text.text_embeds for text in texts], dim=-1),
                timestep=timesteps[row : row + 1],
            ).sample
            assert float(found[row]) == pytest.approx(
                float((velocity - (noise - clean)[row]).square().mean()), rel=1e-4
            )


def test_the_family_reads_the_saved_model_and_predicts_the_same(trained, saved, model):
    generator = torch.Generator().manual_seed(1)
    x, timesteps = torch.randn(2, 2, 8, 8, generator=generator), torch.tensor([100, 1000])
    assert model.spec.family == "sd3" and model.spec.prediction == "flow" and model.spec.latent_shape == (2, 8, 8)
    assert torch.equal(model.spec.schedule.signal, trained.process.signal)
    with torch.no_grad():
        condition = model.encode_conditions(CAPTIONS)
        found = model.backbone.denoise(x, timesteps, condition).value
        expected = trained.predict(x, timesteps, CAPTIONS)
    assert condition["encoder_hidden_states"].shape == (2, 16 + 256, 32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found[:1], found[1:], atol=1e-2)
    other = trained.predict(x, timesteps, ["twemoji emoji, blue square", ""]).detach()
    assert not torch.allclose(other[0], expected[0], atol=1e-3)  # the caption matters


def test_features_are_extracted(saved):
    loaded = DiffusionFeatures.from_pretrained(
        str(saved), taps=["transformer_blocks.1"], timesteps=[200], condition="caption", device="cpu"
    )
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (values,) = loaded(images, keys=["a", "b"], captions=CAPTIONS).values()
    assert values.shape == (2, 16) and bool(torch.isfinite(values).all()) and not torch.equal(*values)


def test_the_sampler_of_scores_makes_the_steps_of_diffusers(model):
    """Both take Euler steps; from t = 1000 the noise is scaled by s = 1 in both."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    conditions = model.encode_conditions(CAPTIONS)
    found = generated_latents(model, ["a", "b"], conditions, steps=4, guidance=1.0, seed=0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = stack_noise(0, ["generated:a", "generated:b"], 0, (2, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            velocity = model.backbone.denoise(x, t.expand(2).round().long(), conditions).value
            x = scheduler.step(velocity, t, x).prev_sample
    torch.testing.assert_close(found, x, atol=1e-2, rtol=1e-2)  # its timesteps are rounded to the grid


def test_the_export_is_a_pipeline_of_diffusers_that_samples(saved, trained, config):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from safetensors.torch import load_file

    assert not list(saved.rglob("*.bin")) and not list(saved.rglob("*.pt"))
    assert not any("_name_or_path" in (saved / part / "config.json").read_text() for part in ("vae", "transformer"))
    stored = load_file(saved / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert next(trained.transformer.parameters()).dtype == torch.float32
    pipeline = StableDiffusion3Pipeline.from_pretrained(saved, text_encoder_3=None, tokenizer_3=None)
    pipeline = pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler) and pipeline.scheduler.config.shift == 2.0
    assert pipeline.vae.config.scaling_factor == 5.0 and trained.vae.config.shift_factor is None
    images = pipeline(
        CAPTIONS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt",
        height=16, width=16,
    ).images  # fmt: skip
    assert images.shape == (1, 3, 16, 16) and bool(torch.isfinite(images).all())


class Interrupt(lightning.Callback):
    """Stops the run after three steps, as a job's end would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path):
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, checkpoint_every_steps=1))
    whole = fit(config, tmp_path / "whole").state_dict()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(config, tmp_path / "cut", callbacks=[Interrupt()])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 4
    resumed = fit(config, tmp_path / "cut", checkpoint=last).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_timesteps_of_training_come_from_the_density_of_the_objective(config, monkeypatch):
    """Mean 6 and a narrow density: all samples are trained at t = 998, the noise level sigmoid(6) = 0.9975."""
    params = {"mean": 6.0, "std": 1e-3}
    narrow = dataclasses.replace(config, objective=ObjectiveConfig(name="flow_matching", params=params))
    module, data = narrow.make()
    seen: list[torch.Tensor] = []
    errors = module.errors
    monkeypatch.setattr(module, "errors", lambda *args: (seen.append(args[2]), errors(*args))[1])
    monkeypatch.setattr(module, "_table", lambda split: data.train)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    assert module.training_step(torch.arange(8), 0).requires_grad
    assert seen[0].tolist() == [998] * 8


def test_frozen_text_encoders_keep_their_seeded_weights(config):
    frozen, free = (
        FlowDenoiserModule(dataclasses.replace(config, text_learning_rate=rate)).trained_parts()[1]
        for rate in (0.0, 1.0)
    )
    for first, second in zip(frozen, free, strict=True):
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b) and b.requires_grad and not a.requires_grad
    assert not torch.equal(*(encoder.text_projection.weight for encoder in free))  # two encoders, not one twice


def test_patches_that_do_not_tile_a_latent_are_refused(config):
    with pytest.raises(ConfigError, match="patch_size=3 does not divide the 8"):
        FlowDenoiserModule(dataclasses.replace(config, transformer=dataclasses.replace(SHAPE, patch_size=3)))


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    wild = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, learning_rate=1e30))
    with pytest.raises(NonFinite, match="steps"):
        fit(wild, tmp_path)
