"""The network of SiT against a plain computation from its tensors, written out here."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.sit_network import MODELS, SiT, SitConfig, position_table
from diffprobe.core.errors import WeightsMismatch

SETTINGS: dict[str, Any] = {
    "hidden_size": 32, "depth": 3, "num_heads": 2, "patch_size": 2, "input_size": 8, "num_classes": 5,
    "convention": "sit", "learn_sigma": True,
}  # fmt: skip


def make(**changes: object) -> SiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SiT.from_config({**SETTINGS, **changes}).eval()


def plain(w: dict[str, Tensor], x: Tensor, times: Tensor, labels: Tensor, *, heads: int, patch: int) -> list[Tensor]:
    """Return the tokens after each block, and the output as a map, by loops and products alone."""

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(value: Tensor, eps: float = 1e-6) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()

    def silu(value: Tensor) -> Tensor:
        return value / (1 + (-value).exp())

    def gelu(value: Tensor) -> Tensor:
        return 0.5 * value * (1 + (math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)).tanh())

    rows, _, side, _ = x.shape
    n = side // patch
    kernel, bias = w["x_embedder.proj.weight"].flatten(1), w["x_embedder.proj.bias"]
    places = [(i, j) for i in range(n) for j in range(n)]
    cut = [x[:, :, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].flatten(1) for i, j in places]
    tokens = torch.stack(cut, 1) @ kernel.T + bias + w["pos_embed"]
    waves = torch.zeros(rows, 256)
    for step in range(128):
        angle = times * math.exp(-math.log(10000) * step / 128)
        waves[:, step], waves[:, 128 + step] = angle.cos(), angle.sin()
    given = linear(silu(linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    given = given + w["y_embedder.embedding_table.weight"][labels]
    found = []
    width = tokens.shape[2]
    for i in range(len({name.split(".")[1] for name in w if name.startswith("blocks.")})):
        block = f"blocks.{i}"
        parts = linear(silu(given), f"{block}.adaLN_modulation.1").split(width, 1)
        shift, scale, gate, shift_2, scale_2, gate_2 = (part[:, None] for part in parts)
        qkv = linear(normed(tokens) * (1 + scale) + shift, f"{block}.attn.qkv")
        mixed = []
        for head in range(heads):
            q, k, v = (
                qkv[..., part * width + head * width // heads : part * width + (head + 1) * width // heads]
                for part in range(3)
            )
            if f"{block}.attn.q_norm.weight" in w:
                q, k = (
                    normed(value, 1e-5) * w[f"{block}.attn.{name}.weight"] + w[f"{block}.attn.{name}.bias"]
                    for value, name in ((q, "q_norm"), (k, "k_norm"))
                )
            scores = (q @ k.transpose(1, 2) / math.sqrt(width // heads)).exp()
            mixed.append(scores / scores.sum(-1, keepdim=True) @ v)
        tokens = tokens + gate * linear(torch.cat(mixed, -1), f"{block}.attn.proj")
        inner = gelu(linear(normed(tokens) * (1 + scale_2) + shift_2, f"{block}.mlp.fc1"))
        tokens = tokens + gate_2 * linear(inner, f"{block}.mlp.fc2")
        found.append(tokens)
    shift, scale = (part[:, None] for part in linear(silu(given), "final_layer.adaLN_modulation.1").split(width, 1))
    out = linear(normed(tokens) * (1 + scale) + shift, "final_layer.linear")
    channels = out.shape[2] // patch**2
    image = torch.zeros(rows, channels, side, side)
    for place, (i, j) in enumerate(places):
        for y in range(patch):
            for z in range(patch):
                values = out[:, place, (y * patch + z) * channels : (y * patch + z + 1) * channels]
                image[:, :, patch * i + y, patch * j + z] = values
    return [*found, image]


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_it_is_a_plain_computation_from_its_tensors(qk_norm: bool) -> None:
    network = make(qk_norm=qk_norm)
    for name, value in network.named_parameters():
        if "_norm" in name:  # other than their first values, ones and zeros
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times, labels = torch.tensor([0.0, 0.261, 1.0]), torch.tensor([4, 0, 5])
    seen: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    output = network(x, times, labels)
    found = [*seen, output]
    expected = plain(dict(network.state_dict()), x, times, labels, heads=2, patch=2)
    assert len(found) == len(expected) == 4 and found[-1].shape == (3, 8, 8, 8)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((found[-1][0] - found[-1][1]).abs().max()) > 1e-2


def test_the_tensors_have_the_published_names() -> None:
    names = set(make(qk_norm=True, z_dims=[6], projector_dim=8).state_dict())
    first = {name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")}
    pairs = ("attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    assert first == {f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")}
    others = {name for name in names if not name.startswith("blocks.")}
    linear = (
        "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear",
        "final_layer.adaLN_modulation.1", "projectors.0.0", "projectors.0.2", "projectors.0.4",
    )  # fmt: skip
    single = {"pos_embed", "y_embedder.embedding_table.weight"}
    assert others == single | {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}


def test_positions_are_those_of_diffusers() -> None:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(32, 6, base_size=6, output_type="pt")
    torch.testing.assert_close(position_table(32, 6)[0], expected.float(), atol=1e-6, rtol=0)


def test_a_projector_reads_the_tokens_after_its_block() -> None:
    network = make(z_dims=[6], projector_dim=8, encoder_depth=2)
    seen: dict[str, Tensor] = {}
    for path in ("blocks.1", "projectors.0"):
        network.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.__setitem__(path, out))
    network(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), torch.tensor([1]))
    assert torch.equal(network.projectors[0](seen["blocks.1"]), seen["projectors.0"])
    assert seen["projectors.0"].shape == (1, 16, 6)


def test_published_sizes_have_names() -> None:
    assert len(MODELS) == 12
    config = SitConfig.read({"model": "SiT-XL/2", "input_size": 32, "convention": "sit", "learn_sigma": True})
    assert (config.hidden_size, config.depth, config.num_heads, config.patch_size) == (1152, 28, 16, 2)
    with torch.device("meta"):
        network = SiT(config)
    assert sum(p.numel() for p in network.parameters()) == 675_129_632  # 675M in table 1 of DiT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "SiT-H/2"}, "SiT-H/2.*(?s:.*)SiT-XL/2"),
        ({"path": "cosine"}, "unknown path"),
        ({"convention": "edm"}, "convention is edm"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": True}, "depth is True"),
        ({"num_heads": 3}, "no whole parts"),
        ({"input_size": 7}, "no whole parts"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        SiT.from_config({**SETTINGS, **changes})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(WeightsMismatch, match="missing convention"):
        SiT.from_config({name: value for name, value in SETTINGS.items() if name != "convention"})
