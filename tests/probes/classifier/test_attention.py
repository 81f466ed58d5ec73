"""The attention head against torch's own layers, and against the published numbers of parameters."""

import pytest
import torch
from torch import nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import attentive, difformer
from diffprobe.probes.classifier.attention import AttentionConfig, Block, Tokens
from diffprobe.probes.classifier.inputs import joined

SMALL = {"width": 12, "heads": 3, "places": 4}


def n_trained(head):
    return sum(p.numel() for p in head.parameters() if p.requires_grad)


def test_a_block_is_torchs_encoder_layer():
    config = AttentionConfig(**SMALL)
    block = Block(config)
    plain = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-5
    )
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.out_proj.weight": block.out.weight,
        "self_attn.out_proj.bias": block.out.bias,
        "linear1.weight": block.mlp[0].weight,
        "linear1.bias": block.mlp[0].bias,
        "linear2.weight": block.mlp[2].weight,
        "linear2.bias": block.mlp[2].bias,
    }
    with torch.no_grad():
        for norm, other in ((block.norm_attention, plain.norm1), (block.norm_mlp, plain.norm2)):
            norm.weight.copy_(torch.rand(12) + 0.5)
            other.load_state_dict(norm.state_dict())
        state = dict(plain.named_parameters())
        for name, weight in pairs.items():
            state[name].copy_(weight)
        state["self_attn.in_proj_bias"].zero_()
    x = torch.randn(5, 7, 12)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-5, atol=1e-5)


def test_tokens_are_places_row_by_row():
    tokens = Tokens((3, 4, 2), AttentionConfig(**SMALL))
    x = torch.randn(5, 3, 4, 2)
    normed = tokens.norm(x)
    plain = normed.permute(0, 2, 3, 1).reshape(5, 8, 3) @ tokens.project.weight[:, :, 0, 0].T + tokens.project.bias
    torch.testing.assert_close(tokens(x), plain, rtol=1e-5, atol=1e-5)
    assert Tokens((3, 9, 5), AttentionConfig(**SMALL)).size == (4, 4)


def test_parameters_are_as_many_as_the_papers():
    with torch.device("meta"):
        at_24 = {"block24@t150:empty:none": (1024, 16, 16)}
        alone = attentive.make(attentive.Config(), at_24, 1000, seed=0)
        blocks = {"block19": (1024, 8, 8), "block24": (1024, 16, 16), "block30": (512, 32, 32)}
        shapes = {f"{tap}@t{t}:empty:none": shape for tap, shape in blocks.items() for t in (90, 150, 300)}
        several = difformer.make(difformer.Config(), shapes, 1000, seed=0)
    assert n_trained(alone) == 27_786_216  # 27.8 M
    assert n_trained(several) == 31_802_344  # 31.8 M
    assert alone(torch.empty(2, 1024 * 16 * 16, device="meta")).shape == (2, 1000)
    maps = {cell: torch.empty(2, *shape, device="meta") for cell, shape in shapes.items()}
    assert several(joined(maps, shapes)).shape == (2, 1000)


def test_widths_that_do_not_fit():
    with pytest.raises(ConfigError, match="heads=5.*width=12"):
        AttentionConfig(width=12, heads=5)
    for name in ("width", "blocks", "heads", "mlp_ratio", "places"):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            AttentionConfig(**{name: 0})
