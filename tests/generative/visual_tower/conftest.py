"""Tiny parts of a LLaVA on disk, and the configuration of a tiny run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.config.schema import BackboneConfig, DataConfig, LoggerConfig, TrainerConfig
from diffprobe.generative.visual_tower.assembly import TinyShape
from diffprobe.generative.visual_tower.module import VisualTowerTraining

TINY = TinyShape(
    width=16, layers=1, heads=2, vocab_size=540, clip_width=8, clip_layers=2, clip_resolution=16, clip_patch=8
)
"""CLIP has 4 patches; the map of emoji-sd's up_blocks.0 is 4 x 4, which makes 4 tokens."""


@pytest.fixture
def make_config(tiny_shards):
    """Return a function that makes the configuration of a tiny run, with changes."""

    def make(**changes: Any) -> VisualTowerTraining:
        settings: dict[str, Any] = {
            "experiment": "tiny/tower",
            "backbone": BackboneConfig(path="emoji-sd", device="cpu"),
            "data": DataConfig(path=str(tiny_shards), batch_size=4),
            "tap": "up_blocks.0",
            "tiny": TINY,
            "diffusion_width": 8,
            "train": "all",
            "max_length": 64,
            "trainer": TrainerConfig(
                accelerator="cpu", max_epochs=2, learning_rate=1e-2, enable_progress_bar=False, log_every_steps=1
            ),
            "logger": LoggerConfig(kind="none"),
        }
        return VisualTowerTraining(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory) -> dict[str, Path]:
    """Folders of a tiny language model with its tokenizer and of a tiny CLIP, as save_pretrained writes them."""
    from transformers import CLIPVisionModel

    from diffprobe.generative.visual_tower.assembly import make_language_model

    root = tmp_path_factory.mktemp("llava_parts")
    model: Any
    model, tokenizer = make_language_model("tiny", TINY, ["a red cat", "noto emoji, blue round"], seed=3)
    model.save_pretrained(root / "language")
    tokenizer.save_pretrained(root / "language")
    torch.manual_seed(4)
    CLIPVisionModel(TINY.clip_config()).save_pretrained(root / "clip")
    return {"language_model": root / "language", "clip": root / "clip"}
