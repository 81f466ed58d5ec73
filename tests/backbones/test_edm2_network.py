"""The network of EDM2 against a plain computation from its tensors, written out here."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.edm2_network import MODELS, Edm2Config, Edm2UNet
from diffprobe.core.errors import WeightsMismatch

SETTINGS: dict[str, Any] = {
    "img_resolution": 8, "img_channels": 4, "label_dim": 5, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8, "clip_act": 1.5,
}  # fmt: skip
BLOCKS = [
    "enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0",
    "dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1",
]  # fmt: skip


def make(**changes: object) -> Edm2UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Edm2UNet.from_config({**SETTINGS, **changes}).eval()
        for parameter in network.parameters():
            if parameter.ndim == 0:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def plain(w: dict[str, Tensor], x: Tensor, noise: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Return the output of each block and of the whole, from the equations of the paper, for SETTINGS."""

    def layer(value: Tensor, name: str, gain: Tensor | float = 1.0) -> Tensor:
        weight = w[f"{name}.weight"]
        rows = weight.flatten(1)
        n = rows.shape[1]
        unit = rows / (rows.square().sum(1, keepdim=True).sqrt() / n**0.5 + 1e-4)  # equation 66
        rows = unit / n**0.5 * gain  # equation 47
        if value.ndim == 2:
            return value @ rows.T
        side = weight.shape[-1]
        patches = torch.nn.functional.unfold(value, side, padding=side // 2)
        return (rows @ patches).unflatten(2, value.shape[2:])

    def act(value: Tensor) -> Tensor:
        return value * value.sigmoid() / 0.596  # equation 81

    def add(a: Tensor, b: Tensor, t: float) -> Tensor:
        return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5  # equation 88

    def pixel_norm(value: Tensor, axis: int) -> Tensor:
        return value / (value.square().mean(axis, keepdim=True).sqrt() + 1e-4)

    waves = 2**0.5 * (noise[:, None] * w["emb_fourier.freqs"] + w["emb_fourier.phases"]).cos()  # equation 75
    given = layer(waves, "emb_noise")
    if labels is not None:
        one = torch.zeros(len(labels), 5)
        for i, label in enumerate(labels.tolist()):
            one[i, label] = 5**0.5
        given = add(given, layer(one, "emb_label"), 0.5)
    given = act(given)

    def block(value: Tensor, name: str) -> Tensor:
        if name.endswith("_down"):
            value = (value[..., ::2, ::2] + value[..., 1::2, ::2] + value[..., ::2, 1::2] + value[..., 1::2, 1::2]) / 4
        if name.endswith("_up"):
            value = value.repeat_interleave(2, 2).repeat_interleave(2, 3)
        skips = f"{name}.conv_skip.weight" in w
        if name.startswith("enc"):
            value = pixel_norm(layer(value, f"{name}.conv_skip") if skips else value, 1)
        scale = layer(given, f"{name}.emb_linear", w[f"{name}.emb_gain"]) + 1
        branch = layer(act(value), f"{name}.conv_res0") * scale[:, :, None, None]
        branch = layer(act(branch), f"{name}.conv_res1")
        if name.startswith("dec") and skips:
            value = layer(value, f"{name}.conv_skip")
        value = add(value, branch, 0.3)
        if f"{name}.attn_qkv.weight" in w:
            qkv = layer(value, f"{name}.attn_qkv").flatten(2)
            found = []
            for head in range(qkv.shape[1] // 24):
                own = qkv[:, 24 * head : 24 * (head + 1)]
                q, k, v = (pixel_norm(own[:, part::3], 1) for part in range(3))
                scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(8)
                shares = scores.exp() / scores.exp().sum(2, keepdim=True)
                found.append(torch.einsum("bqk,bck->bcq", shares, v))
            mixed = torch.cat(found, 1).reshape(value.shape)
            value = add(value, layer(mixed, f"{name}.attn_proj"), 0.3)
        return value.clip(-1.5, 1.5)

    maps: dict[str, Tensor] = {}
    x = layer(torch.cat([x, torch.ones_like(x[:, :1])], 1), "enc.8x8_conv")
    kept = [x]
    for name in BLOCKS:
        if name.startswith("dec") and "_block" in name:
            other = kept.pop()
            a, b = x.shape[1], other.shape[1]
            scale = ((a + b) / 0.5) ** 0.5 / 2  # equation 103 for equal shares
            x = torch.cat([x * scale / a**0.5, other * scale / b**0.5], 1)
        x = maps[name] = block(x, name)
        if name.startswith("enc"):
            kept.append(x)
    return {**maps, "": layer(x, "out_conv", w["out_gain"])}


def keeping(found: dict[str, Tensor], path: str) -> Callable[..., None]:
    return lambda module, args, output: found.__setitem__(path, output)


@pytest.mark.parametrize("label_dim", [5, 0])
@torch.no_grad()
def test_it_is_a_plain_computation_from_its_tensors(label_dim: int) -> None:
    network = make(label_dim=label_dim)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise, labels = torch.tensor([-1.5, 0.1, 1.1]), torch.tensor([4, 0, 3]) if label_dim else None
    found: dict[str, Tensor] = {}
    for path in [*BLOCKS, ""]:
        network.get_submodule(path).register_forward_hook(keeping(found, path))
    network(x, noise, labels)
    expected = plain(dict(network.state_dict()), x, noise, labels)
    assert found.keys() == expected.keys() and found[""].shape == x.shape
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value, atol=1e-5, rtol=1e-5, msg=lambda m, p=path: f"{p}: {m}")
    clipped = [float((value.abs() == 1.5).float().mean()) for path, value in expected.items() if path]
    assert max(clipped) > 0.01 and min(clipped) < 0.5


@torch.no_grad()
def test_level_and_class_change_the_output() -> None:
    network, x = make(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    out = network(x, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1, 2, 1]))
    assert float((out[0] - out[1]).abs().max()) > 1e-3 and float((out[0] - out[2]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("model", "millions"),
    [("edm2-img512-xs", 125), ("edm2-img512-s", 280), ("edm2-img512-m", 498), ("edm2-img512-xxl", 1523)],
)
def test_published_sizes_have_their_number_of_parameters(model: str, millions: int) -> None:
    """Table 2 of the paper."""
    with torch.device("meta"):
        network = Edm2UNet(Edm2Config.read({"model": model}))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_settings_replace_those_of_a_published_model() -> None:
    assert Edm2Config.read({"model": "edm2-img64-s", "label_dim": 0}) == Edm2Config(
        img_resolution=64, img_channels=3, label_dim=0, model_channels=192
    )
    assert len(MODELS) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "edm2-img512-h"}, "edm2-img512-h.*(?s:.*)edm2-img512-xxl"),
        ({"dropout": 0.1}, "unknown dropout"),
        ({"model_channels": 0}, "model_channels is 0"),
        ({"label_dim": True}, "label_dim is True"),
        ({"channel_mult": 2}, "channel_mult is 2"),
        ({"attn_resolutions": []}, "attn_resolutions is"),
        ({"res_balance": "a"}, "res_balance is a"),
        ({"img_resolution": 7}, "img_resolution 7"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        Edm2UNet.from_config({**SETTINGS, **changes})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(WeightsMismatch, match="missing label_dim"):
        Edm2Config.read({name: value for name, value in SETTINGS.items() if name != "label_dim"})
