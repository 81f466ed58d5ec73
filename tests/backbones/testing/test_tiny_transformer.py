from pathlib import Path

import pytest
import torch

from diffprobe.backbones.testing.tiny_transformer import (
    tiny_cogvideox_vae,
    tiny_dc,
    tiny_flux2_vae,
    tiny_ltx_vae,
    tiny_qwen_vae,
    tiny_t5,
    tiny_vae,
    tiny_wan_vae,
)


def test_a_tokenizer_knows_words_and_letters_and_ends_a_text(tmp_path: Path) -> None:
    from transformers import T5TokenizerFast

    tokenizer, encoder = tiny_t5(tmp_path / "tokenizer")
    assert tokenizer.tokenize("red cat ab") == ["▁red", "▁cat", "▁", "a", "b"]
    tokens = T5TokenizerFast.from_pretrained(tmp_path / "tokenizer")(["", "red"], padding="max_length", max_length=4)
    assert tokens.input_ids[0] == [1, 0, 0, 0] and tokens.attention_mask == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert encoder(torch.tensor(tokens.input_ids))[0].shape == (2, 4, 32)


@pytest.mark.parametrize("flow", [False, True])
def test_a_vae_halves_a_side_in_the_asked_channels(flow: bool) -> None:
    vae = tiny_vae(32, latent_channels=8, shift=0.1, flow=flow)
    assert vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 8, 16, 16)
    assert (vae.quant_conv is None) is flow and vae.config.shift_factor == 0.1


def test_a_vae_of_more_levels_halves_a_side_more_often() -> None:
    assert tiny_vae(32, levels=4).encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 4, 4, 4)


def test_a_deep_compression_autoencoder_halves_a_side_in_the_asked_channels() -> None:
    assert tiny_dc(latent_channels=8).encode(torch.zeros(1, 3, 32, 32)).latent.shape == (1, 8, 16, 16)


def test_the_vae_of_flux2_has_statistics_of_its_own() -> None:
    vae = tiny_flux2_vae(latent_channels=8)
    assert vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 8, 16, 16)
    assert vae.bn.running_mean.shape == (32,) and float(vae.bn.running_mean.abs().min()) > 0
    assert float(vae.bn.running_var.max()) < 1


def test_the_vae_of_qwen_image_takes_frames() -> None:
    vae = tiny_qwen_vae(latent_channels=8)
    assert vae.encode(torch.zeros(1, 3, 1, 32, 32)).latent_dist.mode().shape == (1, 8, 1, 16, 16)


@pytest.mark.parametrize(("patch", "side"), [(None, 16), (2, 8)])
def test_the_vae_of_wan_may_put_places_side_by_side(patch: int | None, side: int) -> None:
    vae = tiny_wan_vae(latent_channels=8, patch=patch)
    assert vae.encode(torch.zeros(1, 3, 1, 32, 32)).latent_dist.mode().shape == (1, 8, 1, side, side)


def test_the_vae_of_cogvideox_takes_frames() -> None:
    vae = tiny_cogvideox_vae(latent_channels=8)
    assert vae.encode(torch.zeros(1, 3, 1, 32, 32)).latent_dist.mode().shape == (1, 8, 1, 16, 16)


def test_the_vae_of_ltx_has_statistics_of_its_own() -> None:
    vae = tiny_ltx_vae(latent_channels=8)
    assert vae.encode(torch.zeros(1, 3, 1, 32, 32)).latent_dist.mode().shape == (1, 8, 1, 8, 8)
    assert vae.latents_mean.shape == (8,) and float(vae.latents_mean.abs().min()) > 0
    assert float(vae.latents_std.max()) < 1
