"""A family is one file and one preset: nothing else is touched to add one."""

import sys
from pathlib import Path

import pytest

from diffprobe.backbones import families
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.compose import load_run
from diffprobe.core.registry import FAMILIES
from tests.backbones.contract import CHECKS, make_case

FAMILY = '''
"""Twins: Stable Diffusion pipelines under another name."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers

from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.families.sd_unet import digests, load

diffusers.TwinPipeline = type("TwinPipeline", (diffusers.StableDiffusionPipeline,), {})


def matches(index):
    return index.get("_class_name") == "TwinPipeline"


def spec(checkpoint, resolution):
    return replace(sd_unet.spec(checkpoint, resolution), family="twin")


def tiny(path):
    folder = sd_unet.tiny(path)
    index = Path(folder) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "TwinPipeline"}))
    return folder
'''


@pytest.mark.slow
def test_a_family_is_one_file_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "added"
    family, preset = root / "families" / "twin.py", root / "configs" / "backbone" / "twin.yaml"
    checkpoint = tmp_path / "checkpoints" / "twin"
    for file, text in ((family, FAMILY), (preset, f"path: {checkpoint}\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(family.parent)])
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(root))
    try:
        assert "twin" in FAMILIES.names()
        case = make_case("twin", checkpoint.parent)
        assert case.info.spec.family == "twin"
        for check in CHECKS.values():
            check(case)
        settings = ["backbone=twin", "features.taps=[mid_block]", "features.timesteps=[100]", "backbone.device=cpu"]
        config = load_run(None, settings)
        assert DiffusionFeatures.from_config(config.backbone, config.features).plan.spec.family == "twin"
    finally:
        sys.modules.pop("diffprobe.backbones.families.twin", None)
    assert sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml")) == sorted([family, preset])
