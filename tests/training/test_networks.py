from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.training.captions import train_tokenizer
from diffprobe.training.networks import (
    DenoiserShape,
    make_text_encoder,
    make_unet,
    open_text_encoder,
    open_unet,
    require_autoencoder,
    require_text_encoder,
    weights_folder,
)

SHAPE = DenoiserShape(
    channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4, text_width=16, text_layers=1, text_heads=2
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["red cat", "blue dog"], vocab_size=520, max_tokens=SHAPE.max_tokens)


def make(tokenizer, seed=0):
    unet = make_unet(SHAPE, latent_channels=2, latent_side=8, seed=seed)
    return unet, make_text_encoder(SHAPE, tokenizer=tokenizer, seed=seed)


def test_the_shipped_weights_are_found_by_their_name(tmp_path):
    autoencoder = require_autoencoder("emoji-sd")
    assert autoencoder == weights_folder("emoji-sd") / "vae" and (autoencoder / "config.json").is_file()
    assert require_autoencoder(str(autoencoder)) == autoencoder and weights_folder("a/b") == Path("a/b")
    require_text_encoder(weights_folder("emoji-sd"))
    with pytest.raises(WeightsMissing, match="holds no autoencoder"):
        require_autoencoder(str(tmp_path))
    with pytest.raises(WeightsMissing, match="missing: text_encoder"):
        require_text_encoder(tmp_path)


def test_text_and_latent_fit_together(tokenizer):
    unet, text_encoder = make(tokenizer)
    tokens = tokenizer(["red cat", ""], padding="max_length", max_length=32, return_tensors="pt").input_ids
    text = text_encoder(tokens).last_hidden_state
    assert text.shape == (2, 32, 16) and text_encoder.config.vocab_size == len(tokenizer)
    latents = torch.randn(2, 2, 8, 8)
    out = unet(latents, torch.tensor([3, 900]), text).sample
    assert out.shape == latents.shape
    assert not torch.allclose(
        out[0], unet(latents, torch.tensor([3, 900]), text.flip(0)).sample[0]
    )  # it reads the text


def test_which_levels_read_the_text_and_how_many_heads(tokenizer):
    unet, _ = make(tokenizer)
    reads = {name.rpartition(".attentions")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert reads == {"down_blocks.0", "mid_block", "up_blocks.1"}
    assert {module.heads for name, module in unet.named_modules() if name.endswith("attn2")} == {2}


def test_weights_are_the_seeds_alone(tokenizer):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = make(tokenizer)
    assert torch.equal(torch.rand(2), expected)
    for first, second, other in zip(one, make(tokenizer), make(tokenizer, seed=1), strict=True):
        pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)


def test_plain_attention_is_the_fused_one(tokenizer):
    """Training takes the plain form for its speed on a CPU; whoever loads the weights takes the other."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    unet, text_encoder = make(tokenizer)
    tokens = tokenizer(["red cat"], padding="max_length", max_length=32, return_tensors="pt").input_ids
    latents = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        text = text_encoder(tokens).last_hidden_state
        plain = unet(latents, 50, text).sample
        unet.set_attn_processor(AttnProcessor2_0())
        text_encoder.set_attn_implementation("sdpa")
        fused = unet(latents, 50, text_encoder(tokens).last_hidden_state).sample
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-4)


def test_trained_networks_are_opened_to_go_on(tiny_sd):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_sd / "unet")
    shape = DenoiserShape(channels=tuple(unet.config.block_out_channels), text_width=32, max_tokens=24)
    words, text = open_text_encoder(tiny_sd, shape)
    opened = open_unet(tiny_sd, shape)
    for name, value in unet.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)
    assert opened.dtype == text.dtype == torch.float32 and len(words) == text.config.vocab_size
    for open_one in (open_unet, open_text_encoder):
        with pytest.raises(WeightsMismatch, match="another shape"):
            open_one(tiny_sd, DenoiserShape())
