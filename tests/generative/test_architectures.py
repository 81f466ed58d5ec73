import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.generative.architectures import (
    BetaSchedule,
    DenoiserShape,
    make_text_encoder,
    make_unet,
    open_text_encoder,
    open_unet,
    require_autoencoder,
    require_schedule,
    require_text_encoder,
    weights_folder,
)
from diffprobe.generative.tokenizer import train_tokenizer

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
    with pytest.raises(WeightsMissing, match="autoencoder"):
        require_autoencoder(str(tmp_path))
    with pytest.raises(WeightsMissing, match="text_encoder"):
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


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Networks of SHAPE, saved as a pipeline's folder has them."""
    path = tmp_path_factory.mktemp("pipeline")
    unet, text_encoder = make(tokenizer)
    unet.save_pretrained(path / "unet")
    text_encoder.save_pretrained(path / "text_encoder")
    tokenizer.save_pretrained(path / "tokenizer")
    BetaSchedule().scheduler().save_pretrained(path / "scheduler")
    return path


def test_trained_networks_are_opened_to_go_on(folder, tokenizer):
    unet, _ = make(tokenizer)
    words, text = open_text_encoder(folder, SHAPE)
    opened = open_unet(folder, SHAPE)
    for name, value in unet.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)
    assert opened.dtype == text.dtype == torch.float32 and len(words) == text.config.vocab_size


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", (8, 8)),
        ("cross_attention", (True, True)),
        ("layers_per_block", 2),
        ("heads", 4),
        ("norm_groups", 2),
        ("text_width", 32),
        ("text_heads", 4),
        ("text_layers", 2),
        ("max_tokens", 16),
        ("vocab_size", 515),
    ],
)
def test_networks_of_another_shape_are_refused_by_the_key(folder, key, value):
    openers = {
        "text_width": (open_unet, open_text_encoder),
        "text_heads": (open_unet, open_text_encoder),
        **dict.fromkeys(("text_layers", "max_tokens", "vocab_size"), (open_text_encoder,)),
    }
    for open_one in openers.get(key, (open_unet,)):
        with pytest.raises(WeightsMismatch, match=rf"{key}: found .*model.{key} ") as raised:
            open_one(folder, dataclasses.replace(SHAPE, **{key: value}))
        assert f"model.{key}" in raised.value.fix


def test_a_shape_that_the_model_block_cannot_express_is_refused(folder, tmp_path):
    """Blocks that do not mirror each other, and heads by level."""
    shutil.copytree(folder / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "attention_head_dim": [2, 2]}))
    open_unet(tmp_path, SHAPE)
    path.write_text(json.dumps({**config, "attention_head_dim": [2, 4]}))
    with pytest.raises(WeightsMismatch, match=r"heads: found \(2, 4\).*model.heads.* 2"):
        open_unet(tmp_path, SHAPE)


def test_a_trained_unet_goes_on_with_the_dropout_that_is_asked_for(folder):
    opened = open_unet(folder, dataclasses.replace(SHAPE, dropout=0.5))
    assert {block.dropout.p for block in opened.modules() if isinstance(block, ResnetBlock2D)} == {0.5}
    assert opened.config.dropout == 0.5 and opened.training


def test_another_forward_process_is_refused(folder, tiny_sd, tmp_path):
    require_schedule(folder, BetaSchedule())
    require_schedule(tiny_sd, BetaSchedule())
    with pytest.raises(WeightsMismatch, match="beta_schedule.*scaled_linear.* linear"):
        require_schedule(folder, BetaSchedule(beta_schedule="linear"))
    with pytest.raises(WeightsMissing, match="scheduler/scheduler_config.json"):
        require_schedule(tmp_path, BetaSchedule())
    (tmp_path / "scheduler").mkdir()
    given = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    for changed, words in (
        ({"prediction_type": "v_prediction"}, "prediction_type: found v_prediction, this run has epsilon"),
        ({"trained_betas": [0.01] * 1000}, "rescale_betas_zero_snr"),
    ):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({**given, **changed}))
        with pytest.raises(WeightsMismatch, match=words):
            require_schedule(tmp_path, BetaSchedule())


def test_the_shipped_networks_have_the_default_shape_and_noise():
    """So `init_from=emoji-sd` and `text_encoder=emoji-sd` need no further key."""
    shipped = weights_folder("emoji-sd")
    require_schedule(shipped, BetaSchedule())
    open_unet(shipped, DenoiserShape())
    open_text_encoder(shipped, DenoiserShape())
