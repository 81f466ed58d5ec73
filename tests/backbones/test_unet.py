import json
import shutil
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.locate import locate
from diffprobe.backbones.unet import (
    check_latents,
    digest_tokenizer,
    guidance_embedding,
    image_side,
    make_unet,
    read_unet_config,
)
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

KIND = "UNet2DConditionModel"


def test_the_side_is_the_asked_one_or_the_networks_own(tiny_sd: Path) -> None:
    checkpoint = locate(str(tiny_sd))
    assert image_side(checkpoint, {"sample_size": 64}, None, multiple=8, factor=8) == 512
    assert image_side(checkpoint, {"sample_size": [16, 16]}, None, multiple=2, factor=2) == 32
    assert image_side(checkpoint, {"sample_size": 64}, 256, multiple=8, factor=8) == 256
    with pytest.raises(ConfigError, match=r"resolution 20 .* 8\b.*\n.*features\.resolution=16"):
        image_side(checkpoint, {"sample_size": 64}, 20, multiple=8, factor=8)


@pytest.mark.parametrize("size", [None, [16, 24]])
def test_a_network_without_a_square_size_must_be_given_one(size: object, tiny_sd: Path) -> None:
    with pytest.raises(ConfigError, match="sample_size"):
        image_side(locate(str(tiny_sd)), {"sample_size": size}, None, multiple=8)
    assert image_side(locate(str(tiny_sd)), {"sample_size": size}, 32, multiple=8) == 32


@pytest.mark.parametrize("width", [32, 33])
def test_the_guidance_embedding_is_that_of_the_pipeline(width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline

    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = embed(None, torch.tensor([8.5 - 1]), embedding_dim=width)  # type: ignore[arg-type]
    found = guidance_embedding({"time_cond_proj_dim": width})
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert guidance_embedding({"time_cond_proj_dim": None}) is None


def test_a_replaced_folder_brings_its_config(tiny_sd: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_sd / "unet", tmp_path / "other")
    path = other / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time_cond_proj_dim": 8}))
    replaced = locate(str(tiny_sd), denoiser_weights=str(other))
    assert read_unet_config(replaced, KIND)["time_cond_proj_dim"] == 8
    assert read_unet_config(locate(str(tiny_sd)), KIND)["time_cond_proj_dim"] is None
    path.unlink()
    with pytest.raises(WeightsMissing, match=r"no unet/config\.json.*\n.*looked for"):
        read_unet_config(replaced, KIND)


def test_a_network_of_another_class_is_refused(tiny_sd: Path) -> None:
    with pytest.raises(WeightsMismatch, match="UNet2DConditionModel.* UNet2DModel"):
        read_unet_config(locate(str(tiny_sd)), "UNet2DModel")
    with pytest.raises(WeightsMismatch, match="4 channels.* 16"):
        check_latents(locate(str(tiny_sd)), {"in_channels": 4}, 16)


def test_a_network_on_the_meta_device_costs_nothing(tiny_sd: Path) -> None:
    checkpoint = locate(str(tiny_sd))
    unet = make_unet(checkpoint, read_unet_config(checkpoint, KIND))
    assert all(parameter.is_meta for parameter in unet.parameters())


def test_the_tokenizers_digest_is_one_of_its_words(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "tokenizer", tmp_path / "tokenizer")
    (folder / "README.md").write_text("no part of it")
    assert digest_tokenizer(folder) == digest_tokenizer(tiny_sd / "tokenizer")
    (folder / "tokenizer_config.json").write_text("{}")
    assert digest_tokenizer(folder) != digest_tokenizer(tiny_sd / "tokenizer")
