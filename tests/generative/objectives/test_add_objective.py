"""Adding a training objective to a copy of the package: one file and one preset, and a step of training with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffprobe.core.result import read_result

ROOT = Path(__file__).parents[3]

V_PREDICTION = '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Config:
    """No settings but a constant weight."""

    weight: float = 1.0


class VPrediction:
    """Predicts v = signal * noise - sigma * clean (Salimans and Ho, 2202.00512)."""

    prediction_type = "v_prediction"

    def __init__(self, config, process):
        self.weight, self.process = config.weight, process

    def target(self, clean, noise, timesteps):
        signal, sigma = (x[timesteps, None, None, None] for x in (self.process.signal, self.process.sigma))
        return signal * noise - sigma * clean

    def weighted(self, errors, timesteps):
        return self.weight * errors


def make(config, process):
    return VPrediction(config, process)
'''


def files(root: Path) -> set[str]:
    folders = (root / "diffprobe", root / "configs", root / "experiments")
    return {path.relative_to(root).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(tmp_path):
    """The package and its presets in a folder of their own; weights and shards are linked."""
    root = tmp_path / "copy"
    for name in ("diffprobe", "configs", "experiments"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (root / "diffprobe/assets").symlink_to(ROOT / "diffprobe/assets")
    return root


@pytest.mark.slow
def test_an_objective_is_one_file_and_one_preset(copy, tiny_shards, tmp_path):
    from diffusers import AutoencoderKL

    before = files(copy)
    (copy / "diffprobe/generative/objectives/velocity.py").write_text(V_PREDICTION)
    (copy / "configs/objective/velocity.yaml").write_text("name: velocity\nparams: {weight: 0.5}\n")
    assert files(copy) - before == {"diffprobe/generative/objectives/velocity.py", "configs/objective/velocity.yaml"}

    torch.manual_seed(0)
    AutoencoderKL(
        sample_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    command = [
        sys.executable, "-m", "diffprobe", "train", "experiment=emoji/train_denoiser", "objective=velocity",
        f"autoencoder={tmp_path / 'vae'}", "text_encoder=null", f"data.path={tiny_shards}", "data.batch_size=8",
        "model={channels: [8, 16], cross_attention: [true, false], heads: 2, norm_groups: 4, text_width: 16, "
        "text_layers: 1, text_heads: 2, vocab_size: 540, max_tokens: 16}",
        "balance_attribute=null", "trainer.max_steps=1", "trainer.enable_progress_bar=false", "logger=none",
        f"output={tmp_path / 'runs'}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy, env=environment)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").rglob("result.json")
    assert read_result(path).config["objective"] == {"name": "velocity", "params": {"weight": 0.5}}
    assert '"v_prediction"' in (path.parent / "weights/scheduler/scheduler_config.json").read_text()
