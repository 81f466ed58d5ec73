from pathlib import Path

import pytest
import torch

from diffprobe.backbones.base import Backbone, LoadOptions
from diffprobe.backbones.families import family_of, pixart, sd_unet
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import RunFailed


@pytest.fixture(params=[sd_unet, pixart], ids=["unet", "transformer"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    checkpoint = locate(str(request.param.tiny(tmp_path / "tiny")))
    spec = request.param.spec(checkpoint, None)
    needed = [path for path, _ in spec.denoiser.named_modules() if path]
    return family_of(checkpoint).load(checkpoint, spec, needed, LoadOptions())


def test_text_encoders_are_freed_and_cached_prompts_stay(backbone: Backbone) -> None:
    assert isinstance(backbone, TextBackbone)
    conditioning = backbone.encode_conditions(["cat", ""])
    assert set(backbone.components()) == {"denoiser", "vae", "text_encoder"}
    backbone.release_text()
    assert set(backbone.components()) == {"denoiser", "vae"}
    again = backbone.encode_conditions(["", "cat"])
    assert all(torch.equal(again[name], rows.flip(0)) for name, rows in conditioning.items())
    with pytest.raises(RunFailed, match="freed before 'dog'"):
        backbone.encode_conditions(["dog"])
