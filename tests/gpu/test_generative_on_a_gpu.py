"""The parts of a diffusion model trained on a GPU: near the CPU's weights, resumed, and readable afterwards."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.result import read_result
from diffprobe.generative.architectures import DenoiserShape
from diffprobe.generative.autoencoder import AutoencoderModule, AutoencoderShape, AutoencoderTraining
from diffprobe.generative.denoiser import DenoiserTraining
from diffprobe.generative.run_settings import GenerativeTraining
from diffprobe.generative.text_encoder import TextEncoderTraining
from diffprobe.runs.train_generative import train_generative

PARTS = ("autoencoder", "text_encoder", "denoiser")


@pytest.fixture(scope="module")
def configs(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    common = {
        "trainer": TrainerConfig(accelerator="gpu", max_epochs=2, enable_progress_bar=False, log_every_steps=1),
        "logger": LoggerConfig(kind="none"),
        "warmup_steps": 1,
        "ema_decay": 0.9,
    }
    data = DataConfig(path=str(tiny_shards), batch_size=8)
    shape = AutoencoderShape(resolution=16, channels=(8, 8), latent_channels=2, norm_groups=4)
    autoencoder = AutoencoderTraining(experiment="tiny/autoencoder", model=shape, data=data, **common)
    folder = tmp_path_factory.mktemp("autoencoder")
    AutoencoderModule(autoencoder).vae.save_pretrained(folder)
    text = DenoiserShape(
        channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4,
        text_width=16, text_layers=1, text_heads=2, vocab_size=540, max_tokens=16,
    )  # fmt: skip
    distilled = TextEncoderTraining(
        experiment="tiny/text_encoder", teacher=str(tiny_teacher), model=text, mixtures=8,
        data=dataclasses.replace(data, batch_size=20), **common,
    )  # fmt: skip
    denoiser = DenoiserTraining(
        experiment="tiny/denoiser", autoencoder=str(folder), model=text, data=data, text_noise=0.1, **common
    )
    return {"autoencoder": autoencoder, "text_encoder": distilled, "denoiser": denoiser}


def train_on(config: GenerativeTraining, output: Path, **trainer: object) -> tuple[dict[str, float], dict]:
    settings = dataclasses.replace(config.trainer, **trainer)
    path = train_generative(dataclasses.replace(config, trainer=settings, output=str(output)))
    files = sorted((path.parent / "weights").rglob("*.safetensors"))
    weights = {f"{file.parent.name}/{name}": x for file in files for name, x in load_file(file).items()}
    return {metric.name: metric.value for metric in read_result(path).metrics}, weights


@pytest.mark.parametrize("name", PARTS)
def test_a_part_trains_as_on_the_cpu(name: str, configs: dict, tmp_path: Path) -> None:
    found, weights = train_on(configs[name], tmp_path / "gpu")
    expected, cpu_weights = train_on(configs[name], tmp_path / "cpu", accelerator="cpu")
    assert weights.keys() == cpu_weights.keys() and weights
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=0.02), metric
    again, same = train_on(configs[name], tmp_path / "again")
    assert all(torch.equal(same[key], weights[key]) for key in weights) and again == found


@pytest.mark.parametrize("name", PARTS)
def test_a_part_trains_in_bfloat16(name: str, configs: dict, tmp_path: Path) -> None:
    found, _ = train_on(configs[name], tmp_path / "mixed", precision="bf16-mixed")
    expected, _ = train_on(configs[name], tmp_path / "whole")
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=0.1), metric
