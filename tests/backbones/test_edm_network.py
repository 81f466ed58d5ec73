"""The networks of EDM against a plain computation from their tensors, written out here."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.edm_network import MODELS, EdmConfig, EdmUNet
from diffprobe.core.errors import WeightsMismatch

ARCHITECTURES = ["ddpmpp", "adm"]
SETTINGS: dict[str, Any] = {
    "architecture": "ddpmpp", "img_resolution": 8, "img_channels": 3, "label_dim": 5, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 8,
}  # fmt: skip
BLOCKS = [
    "enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0",
    "dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1",
]  # fmt: skip
ATTENTIONS = {
    "ddpmpp": ["enc.8x8_block0", "dec.4x4_in0", "dec.8x8_block1"],
    "adm": ["enc.8x8_block0", "dec.4x4_in0", "dec.8x8_block0", "dec.8x8_block1"],
}


def make(**changes: object) -> EdmUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EdmUNet.from_config({**SETTINGS, **changes}).eval()
        for name, parameter in network.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def plain(w: dict[str, Tensor], x: Tensor, noise: Tensor, labels: Tensor | None, *, adm: bool) -> dict[str, Tensor]:
    """Return the output of each block and of the whole, from the descriptions of both architectures, for SETTINGS."""
    eps = 1e-5 if adm else 1e-6

    def linear(value: Tensor, name: str) -> Tensor:
        found = torch.einsum("ni,oi->no", value, w[f"{name}.weight"])
        return found + w[f"{name}.bias"] if f"{name}.bias" in w else found

    def conv(value: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        patches = torch.nn.functional.unfold(value, weight.shape[-1], padding=weight.shape[-1] // 2)
        return (weight.flatten(1) @ patches).unflatten(2, value.shape[2:]) + w[f"{name}.bias"][:, None, None]

    def norm(value: Tensor, name: str) -> Tensor:
        groups = value.unflatten(1, (min(32, value.shape[1] // 4), -1))
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        unit = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + eps).sqrt()).flatten(1, 2)
        return unit * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def act(value: Tensor) -> Tensor:
        return value * value.sigmoid()

    def resized(value: Tensor, name: str) -> Tensor:
        if name.endswith("_down"):
            return (value[..., ::2, ::2] + value[..., 1::2, ::2] + value[..., ::2, 1::2] + value[..., 1::2, 1::2]) / 4
        return value.repeat_interleave(2, 2).repeat_interleave(2, 3) if name.endswith("_up") else value

    steps = torch.arange(8) / (8 if adm else 7)
    angles = noise[:, None] * torch.exp(-math.log(10_000) * steps)
    given = torch.cat([angles.cos(), angles.sin()] if adm else [angles.sin(), angles.cos()], 1)
    one = None if labels is None else torch.eye(5)[labels]
    if adm:
        given = linear(act(linear(given, "map_layer0")), "map_layer1")
        given = act(given if one is None else given + linear(one, "map_label"))
    else:
        given = given if one is None else given + linear(one * 5**0.5, "map_label")
        given = act(linear(act(linear(given, "map_layer0")), "map_layer1"))

    def block(value: Tensor, name: str) -> Tensor:
        y = conv(resized(act(norm(value, f"{name}.norm0")), name), f"{name}.conv0")
        more = linear(given, f"{name}.affine")[:, :, None, None]
        if adm:
            n = more.shape[1] // 2
            y = norm(y, f"{name}.norm1") * (1 + more[:, :n]) + more[:, n:]
        else:
            y = norm(y + more, f"{name}.norm1")
        value = resized(value, name)
        value = conv(value, f"{name}.skip") if f"{name}.skip.weight" in w else value
        value = value + conv(act(y), f"{name}.conv1")
        value = value if adm else value / 2**0.5
        if name in ATTENTIONS["adm" if adm else "ddpmpp"]:
            qkv = conv(norm(value, f"{name}.norm2"), f"{name}.qkv").flatten(2)
            width, found = (8 if adm else value.shape[1]), []
            for head in range(value.shape[1] // width):
                own = qkv[:, 3 * width * head : 3 * width * (head + 1)]
                q, k, v = (own[:, part::3] for part in range(3))
                shares = (torch.einsum("bcq,bck->bqk", q, k) / width**0.5).exp()
                found.append(torch.einsum("bqk,bck->bcq", shares / shares.sum(2, keepdim=True), v))
            value = value + conv(torch.cat(found, 1).reshape(value.shape), f"{name}.proj")
            value = value if adm else value / 2**0.5
        return value

    maps: dict[str, Tensor] = {}
    x = conv(x, "enc.8x8_conv")
    kept = [x]
    for name in BLOCKS:
        if name.startswith("dec") and "_block" in name:
            x = torch.cat([x, kept.pop()], 1)
        x = maps[name] = block(x, name)
        if name.startswith("enc"):
            kept.append(x)
    last = ("out_norm", "out_conv") if adm else ("dec.8x8_aux_norm", "dec.8x8_aux_conv")
    return {**maps, "": conv(act(norm(x, last[0])), last[1])}


def keeping(found: dict[str, Tensor], path: str) -> Callable[..., None]:
    return lambda module, args, output: found.__setitem__(path, output)


@pytest.mark.parametrize("label_dim", [5, 0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_it_is_a_plain_computation_from_its_tensors(architecture: str, label_dim: int) -> None:
    network = make(architecture=architecture, label_dim=label_dim)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise, labels = torch.tensor([-1.5, 0.1, 1.1]), torch.tensor([4, 0, 3]) if label_dim else None
    found: dict[str, Tensor] = {}
    assert network.blocks == BLOCKS
    for path in [*BLOCKS, ""]:
        network.get_submodule(path).register_forward_hook(keeping(found, path))
    network(x, noise, labels)
    expected = plain(dict(network.state_dict()), x, noise, labels, adm=architecture == "adm")
    assert found.keys() == expected.keys() and found[""].shape == x.shape
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value, atol=1e-5, rtol=1e-5, msg=path)
    attends = [path for path in BLOCKS if getattr(network.get_submodule(path), "heads", 0)]
    assert attends == ATTENTIONS[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_level_and_class_change_the_output(architecture: str) -> None:
    network = make(architecture=architecture)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    out = network(x, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1, 2, 1]))
    assert float((out[0] - out[1]).abs().max()) > 1e-3 and float((out[0] - out[2]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("model", "millions"),
    [("edm-cifar10-32x32-uncond-vp", 55.7), ("edm-ffhq-64x64-uncond-vp", 61.8), ("edm-imagenet-64x64-cond-adm", 295.9)],
)
def test_published_sizes_have_their_number_of_parameters(model: str, millions: float) -> None:
    """Rounded: 56, 62 and 296 million (2206.00364, appendix F)."""
    with torch.device("meta"):
        network = EdmUNet(EdmConfig.read({"model": model}))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_settings_replace_those_of_a_published_model() -> None:
    config = EdmConfig.read({"model": "edm-imagenet-64x64-cond-adm", "label_dim": 0})
    assert (config.architecture, config.num_blocks, config.label_dim) == ("adm", 3, 0)
    assert config.attn_resolutions == (32, 16, 8) and len(MODELS) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "edm-cifar10-32x32-cond-ve"}, "edm-cifar10-32x32-cond-ve.*(?s:.*)allowed: .*-vp"),
        ({"architecture": "ncsnpp"}, "architecture is ncsnpp"),
        ({"dropout": 0.1}, "unknown dropout"),
        ({"model_channels": 0}, "model_channels is 0"),
        ({"channel_mult": 2}, "channel_mult is 2"),
        ({"img_resolution": 7}, "img_resolution 7"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        EdmUNet.from_config({**SETTINGS, **changes})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(WeightsMismatch, match="missing label_dim"):
        EdmConfig.read({name: value for name, value in SETTINGS.items() if name != "label_dim"})
