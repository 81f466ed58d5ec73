"""The three trainings of a tiny diffusion model: two epochs of two steps, on the tiny shards."""

import dataclasses
from pathlib import Path
from typing import Any

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.autoencoder import AutoencoderModule, AutoencoderShape, AutoencoderTraining
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.text_encoder import TextEncoderTraining


def toy_trainings(shards: Path, teacher: Path, folder: Path, *, accelerator: str = "cpu") -> dict[str, Any]:
    """Return the runs by name. The denoiser works in the space of an untrained autoencoder, written to `folder`."""
    data = DataConfig(path=str(shards), batch_size=8)
    common: dict[str, Any] = {
        "trainer": TrainerConfig(accelerator=accelerator, max_epochs=2, enable_progress_bar=False, log_every_steps=1),
        "logger": LoggerConfig(kind="none"),
        "warmup_steps": 1,
        "ema_decay": 0.9,
    }
    shape = AutoencoderShape(resolution=16, channels=(8, 8), latent_channels=2, norm_groups=4)
    autoencoder = AutoencoderTraining(experiment="tiny/autoencoder", model=shape, data=data, **common)
    AutoencoderModule(autoencoder).vae.save_pretrained(folder)
    text = DenoiserShape(
        channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
        text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
    )  # fmt: skip
    denoiser = DenoiserTraining(experiment="tiny/denoiser", autoencoder=str(folder), model=text, data=data, **common)
    text_encoder = TextEncoderTraining(
        experiment="tiny/text_encoder", teacher=str(teacher), model=text, mixtures=8,
        data=dataclasses.replace(data, batch_size=20), **common,
    )  # fmt: skip
    return {"autoencoder": autoencoder, "text_encoder": text_encoder, "denoiser": denoiser}
