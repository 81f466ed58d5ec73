"""Adding a probe is one file and one preset, adding a metric of classifiers one file: done in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffprobe.core.result import read_result

ROOT = Path(__file__).resolve().parents[2]

MLP = '''"""Two layers: one hidden layer on standardised features."""

from dataclasses import dataclass

from torch import nn

from diffprobe.probes.classifier import ClassifierConfig


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Keys of `probe=two_layers`, below `probe.params`."""

    hidden: int = 16
    """Width of the hidden layer."""


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> nn.Module:
    """Return the untrained head."""
    return nn.Sequential(nn.Linear(d_in, config.hidden), nn.ReLU(), nn.Linear(config.hidden, n_classes))
'''
PRESET = "kind: classifier\nname: two_layers\ntargets: [style]\n"
MACRO_F1 = '''"""Macro-F1: the mean over classes of the harmonic mean of precision and recall."""

import torch

FOR, NAME, HIGHER_IS_BETTER = "classifier", "macro_f1", True
HELP = "mean over the classes present of F1"


def from_confusion(counts):
    """Return the macro-F1, in 0..1."""
    counts = counts.double()
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return float((2 * hits / (true + predicted).clamp(min=1))[true > 0].mean())


def chance(counts):
    """Return the macro-F1 of the best constant answer."""
    constant = [torch.zeros_like(counts) for _ in counts]
    for i, matrix in enumerate(constant):
        matrix[:, i] = counts.sum(1)
    return max(map(from_confusion, constant))
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Make a repository that holds a copy of the package and its presets; the shipped weights are linked."""
    root = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("__pycache__", "assets")
    for folder in ("diffprobe", "configs", "experiments"):
        shutil.copytree(ROOT / folder, root / folder, ignore=leave)
    (root / ".gitignore").write_text("__pycache__/\n")
    (root / "diffprobe" / "assets").symlink_to(ROOT / "diffprobe" / "assets")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", "before")
    return root


def git(root, *command):
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def touched(root):
    return {line[3:] for line in git(root, "status", "--porcelain", "--untracked-files=all")}


@pytest.fixture
def train(copy, tiny_sd, tiny_shards, tmp_path):
    """Run `diffprobe train` of the copy; return the result and the folder of the run."""

    def run(*settings):
        command = [
            sys.executable, "-m", "diffprobe", "train",
            f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=8",
            "features.taps=[mid_block]", "features.timesteps=[20]", "features.source=live",
            "trainer.max_epochs=2", "trainer.enable_progress_bar=false", "logger=none", f"output={tmp_path}",
            *settings,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = tmp_path.glob("*/*/result.json")
        return read_result(path), path.parent

    return run


@pytest.mark.slow
def test_a_classifier_and_a_metric_are_a_file_each(copy, train):
    (copy / "diffprobe" / "probes" / "classifier" / "two_layers.py").write_text(MLP)
    (copy / "configs" / "probe" / "two_layers.yaml").write_text(PRESET)
    assert touched(copy) == {"diffprobe/probes/classifier/two_layers.py", "configs/probe/two_layers.yaml"}
    git(copy, "add", "--all")
    git(copy, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message", "mlp")
    (copy / "diffprobe" / "metrics" / "macro_f1.py").write_text(MACRO_F1)
    assert touched(copy) == {"diffprobe/metrics/macro_f1.py"}

    result, folder = train("probe=two_layers", "probe.metrics=[accuracy,macro_f1]", "probe.params.hidden=5")
    assert {record.probe for record in result.metrics} == {"two_layers"} and result.config["probe"][
        "name"
    ] == "two_layers"
    assert {record.name for record in result.metrics} == {"accuracy", "macro_f1"}
    for record in result.metrics:
        assert 0 <= record.value <= 1 and set(record.controls) == {"chance", "shuffled_labels"}
    (saved,) = folder.glob("probes/style/*/probe.json")
    assert '"probe/classifier/two_layers"' in saved.read_text()

    from safetensors.torch import load_file

    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(saved.with_name("probe.safetensors")).items()}
    assert shapes["head.0.weight"][0] == 5 and shapes["head.2.weight"] == (2, 5)
