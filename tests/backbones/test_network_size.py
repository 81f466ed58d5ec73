"""What a few bytes of config may make this process build is bounded."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.network_size import bounded, module_limit, network_bytes, require_memory
from diffprobe.core.errors import RunFailed, WeightsMismatch


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"layers_per_block": 10**6}),
        ("unet", {"layers_per_block": [1, 10**9, 1]}),
        ("unet", {"transformer_layers_per_block": 10**9}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 30_000}),
        ("vae", {"layers_per_block": 10**6}),
        ("text_encoder", {"num_hidden_layers": 10**6}),
    ],
)
def test_networks_without_end_are_not_built(
    part: str, changes: dict[str, object], tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    started = time.process_time()
    with pytest.raises(WeightsMismatch, match=rf"(?s){part}/config.json.*too large.*backbone.max_modules="):
        DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[0], device="cpu")
    assert time.process_time() - started < 5


def test_modules_are_counted_while_they_are_built(tiny_sd: Path) -> None:
    with module_limit(3), pytest.raises(WeightsMismatch, match="x.json.*more modules"), bounded({}, "x.json"):
        nn.Sequential(*(nn.Identity() for _ in range(4)))
    with module_limit(4), bounded({"num_layers": 0}, "x.json"):
        nn.Sequential(*(nn.Identity() for _ in range(4)))
    nn.Sequential(*(nn.Identity() for _ in range(5)))  # nothing is counted outside


def test_the_limit_is_a_setting(tiny_sd: Path) -> None:
    settings = {"taps": ["mid_block"], "timesteps": [0], "device": "cpu"}
    with pytest.raises(WeightsMismatch, match=r"backbone.max_modules=500"):
        DiffusionFeatures.from_pretrained(str(tiny_sd), max_modules=50, **settings)
    DiffusionFeatures.from_pretrained(str(tiny_sd), max_modules=500, **settings)


def test_memory_is_asked_for_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        network = nn.Linear(1000, 1000)
    assert network_bytes(network) == 4 * 1_001_000
    monkeypatch.setattr("diffprobe.backbones.network_size.free_memory", lambda: 10**6)
    require_memory(10**6, "x")
    with pytest.raises(RunFailed, match=r"'x' needs 4\.0 GB of memory, 0\.0 GB are free"):
        require_memory(4 * 10**9, "x")
    monkeypatch.setattr("diffprobe.backbones.network_size.free_memory", lambda: None)
    require_memory(4 * 10**9, "x")


def test_random_weights_that_do_not_fit_are_not_drawn(tiny_sd: Path, tmp_path: Path) -> None:
    """Wide layers cost nothing while a network is described."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [2**20, 32, 32]}))
    with pytest.raises(RunFailed, match="(?s)unet/config.json.*GB of memory"):
        DiffusionFeatures.from_pretrained(
            str(folder), taps=["mid_block"], timesteps=[0], random_weights=True, device="cpu"
        )
