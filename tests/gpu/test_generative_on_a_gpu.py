"""The parts of a diffusion model trained on a GPU: near the CPU's weights, resumed, and readable afterwards."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.core.result import read_result
from diffprobe.generative.run_settings import GenerativeTraining
from diffprobe.runs.train_generative import train_generative
from tests.toy_generative import toy_trainings

PARTS = ("autoencoder", "text_encoder", "denoiser")


@pytest.fixture(scope="module")
def configs(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("autoencoder")
    runs = toy_trainings(tiny_shards, tiny_teacher, folder, accelerator="gpu")
    return {**runs, "denoiser": dataclasses.replace(runs["denoiser"], text_noise=0.1)}


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
