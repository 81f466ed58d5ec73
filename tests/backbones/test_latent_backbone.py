import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffprobe.backbones.base import Backbone, LoadOptions
from diffprobe.backbones.families import family_of, pixart, sd_unet
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import RunFailed, WeightsMissing

PARTS = [(sd_unet, "unet", "conv_in"), (pixart, "transformer", "pos_embed.proj")]
"""Families, the names of their denoisers, and the first layers of these."""


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


@pytest.mark.parametrize("seed", [None, 3], ids=["trained", "random"])
@pytest.mark.parametrize(("family", "part", "first"), PARTS, ids=["unet", "transformer"])
def test_denoiser_and_vae_are_loaded_as_asked(
    family: ModuleType, part: str, first: str, seed: int | None, tmp_path: Path
) -> None:
    checkpoint = locate(str(family.tiny(tmp_path / "tiny")))
    spec, images = family.spec(checkpoint, None), torch.rand(1, 3, 32, 32)
    options = LoadOptions(dtype=torch.bfloat16, random_seed=seed)
    denoiser, vae = load_denoiser_and_vae(checkpoint, spec, {first}, options, part=part)
    names = [name for name, _ in denoiser.named_parameters()]
    assert f"{first}.weight" in names and not any("blocks" in name for name in names)
    assert {parameter.dtype for parameter in (*denoiser.parameters(), *vae.vae.parameters())} == {torch.bfloat16}
    assert vae(images).shape == (1, *family.spec(checkpoint, 32).latent_shape)
    _, placeholder = load_denoiser_and_vae(checkpoint, spec, {first}, LoadOptions(images=False), part=part)
    with pytest.raises(WeightsMissing, match="VAE"):
        placeholder(images)


@pytest.mark.parametrize(("family", "part", "first"), PARTS, ids=["unet", "transformer"])
def test_all_parts_without_weights_are_named_before_any_is_read(
    family: ModuleType, part: str, first: str, tmp_path: Path
) -> None:
    folder = family.tiny(tmp_path / "tiny")
    checkpoint = locate(str(folder))
    spec = family.spec(checkpoint, None)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    for seed, missing in ((None, rf"missing: {part}, vae, text_encoder \(3 of 3"), (3, r"missing: vae, text_encoder")):
        with pytest.raises(WeightsMissing, match=missing):
            load_denoiser_and_vae(
                checkpoint, spec, {first}, LoadOptions(random_seed=seed), part=part, encoders=["text_encoder"]
            )
    shutil.copytree(family.tiny(tmp_path / "whole") / "vae", folder / "vae", dirs_exist_ok=True)
    load_denoiser_and_vae(checkpoint, spec, {first}, LoadOptions(random_seed=3), part=part)
