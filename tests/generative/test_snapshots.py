"""Snapshots are pipelines of the averaged weights, and change nothing of the training."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.errors import ConfigError
from diffprobe.runs.train_generative import run_dir_of, train_generative
from tests.toy_generative import toy_trainings


@pytest.fixture(scope="module")
def config(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny denoiser: two epochs of two steps."""
    trainings = toy_trainings(tiny_shards, tiny_teacher, tmp_path_factory.mktemp("autoencoder"))
    return dataclasses.replace(trainings["denoiser"], output=str(tmp_path_factory.mktemp("runs")))


@pytest.mark.slow
def test_a_snapshot_has_the_averages_of_its_step_and_is_read_by_its_path(config: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(config, snapshot_every_steps=2)
    stale = run_dir_of(config) / "snapshots" / "step-7"
    stale.mkdir(parents=True)
    folder = train_generative(config).parent
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == ["step-2", "step-4"]
    last, end = (load_file(folder / name / "unet/diffusion_pytorch_model.safetensors")
                 for name in ("snapshots/step-4", "weights"))  # fmt: skip
    assert all(torch.equal(last[name], end[name]) for name in end)
    shorter = dataclasses.replace(
        config, snapshot_every_steps=None, output=str(tmp_path), ema_decay=config.ema_decay,
    )  # fmt: skip
    whole = train_generative(shorter).parent  # the same weights without snapshots
    plain = load_file(whole / "weights/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(plain[name], end[name]) for name in end)
    middle = load_file(folder / "snapshots/step-2/unet/diffusion_pytorch_model.safetensors")
    assert not all(torch.equal(middle[name], end[name]) for name in end)
    reader = DiffusionFeatures.from_pretrained(
        str(folder / "snapshots/step-2"), taps=["mid_block"], timesteps=[100], device="cpu"
    )
    (found,) = reader(torch.rand(2, 3, 16, 16), keys=["a", "b"]).values()
    assert found.shape == (2, 16)


def test_a_distance_that_is_never_reached_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="snapshot_every_steps=5 is never reached: the training has 4 steps"):
        train_generative(dataclasses.replace(config, snapshot_every_steps=5))
    with pytest.raises(ConfigError, match="snapshot_every_steps=0 is out of range"):
        dataclasses.replace(config, snapshot_every_steps=0)
