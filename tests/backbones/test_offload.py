"""Blocks in files: features bit for bit those of a network held whole, and never more than two blocks in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import (
    auraflow,
    cogvideox,
    describe,
    dit,
    edm,
    edm2,
    flux,
    flux2,
    hidream,
    hunyuandit,
    kandinsky5,
    ltx,
    lumina2,
    pixart,
    qwen_image,
    sana,
    sd3,
    sd_unet,
    sit,
    unet2d,
    wan,
    z_image,
)  # fmt: skip
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.backbones.offload import BlockOffload, empty, held_bytes, move, offload_of
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError

FAMILIES = [
    auraflow, cogvideox, dit, edm, edm2, flux, flux2, hidream, hunyuandit, kandinsky5, ltx, lumina2, pixart,
    qwen_image, sana, sd3, sd_unet, sit, unet2d, wan, z_image,
]  # fmt: skip
KEYS = ["a", "b"]
INDEX = "model_index.json"


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    family: ModuleType = request.param
    return str(family.tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def load(folder: str) -> Callable[..., DiffusionFeatures]:
    taps = [tap.path for tap in list_taps(folder, resolution=32)][:-1]  # the last block is not needed
    settings: dict[str, Any] = {"taps": taps, "timesteps": [100, 300], "device": "cpu", "resolution": 32}
    settings["condition"] = (
        "label" if json.loads((Path(folder) / INDEX).read_text())["_class_name"] == "EDM2" else "empty"
    )
    return lambda **changes: DiffusionFeatures.from_pretrained(folder, **{**settings, **changes})


def read(features: DiffusionFeatures) -> dict[str, Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return features(images, keys=KEYS, labels=[1, 7])  # of condition=label, the one of EDM2, which has no null class


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"random_weights": True, "random_seed": 3}], ids=["trained", "random"])
def test_features_are_those_of_the_network_held_whole(
    changes: dict[str, Any], load: Callable[..., DiffusionFeatures]
) -> None:
    expected = read(load(**changes, max_rows_per_pass=2))
    offloaded = load(**changes, max_rows_per_pass=2, offload="blocks")
    for _ in range(2):  # a second call begins with the block that was read ahead
        found = read(offloaded)
        assert all(torch.equal(found[cell], expected[cell]) for cell in expected) and set(found) == set(expected)


def test_at_most_two_blocks_are_in_memory_and_none_behind_the_deepest_tap(
    load: Callable[..., DiffusionFeatures],
) -> None:
    features = load(offload="blocks")
    network = features._backbone.denoiser
    offload = offload_of(network)
    assert offload is not None and 0 < len(offload.blocks) < len(features.plan.spec.blocks)
    blocks = {path: network.get_submodule(path) for path in offload.blocks}
    outside = held_bytes(network)
    full: list[int] = []

    def count(module: nn.Module, args: Any) -> None:
        full.append(sum(any(not x.is_meta for x in block.parameters()) for block in blocks.values()))

    for block in blocks.values():
        for module in block.modules():
            module.register_forward_pre_hook(count)
    read(features)
    assert set(full) == {1} and offload.most_held <= 2  # the other one is read ahead
    assert held_bytes(network) == outside
    assert all(x.is_meta for block in blocks.values() for x in block.parameters())


def test_a_pass_that_ends_inside_a_block_frees_it(tmp_path: Path) -> None:
    sd3.tiny(tmp_path)
    tap = "transformer_blocks.1.attn/heads"
    settings: dict[str, Any] = {"taps": [tap], "timesteps": [100], "device": "cpu", "resolution": 32}
    features = DiffusionFeatures.from_pretrained(str(tmp_path), **settings, offload="blocks")
    expected = read(DiffusionFeatures.from_pretrained(str(tmp_path), **settings))
    found = read(features)
    assert all(torch.equal(found[cell], expected[cell]) for cell in expected)
    assert all(x.is_meta for x in features._backbone.denoiser.get_submodule("transformer_blocks.1").parameters())


def test_a_whole_dit_reads_the_embedding_of_its_first_block_again_at_its_end(tmp_path: Path) -> None:
    checkpoint = locate(str(dit.tiny(tmp_path)))
    family, spec = describe(checkpoint, None)
    whole, apart = (load_whole(checkpoint, family, spec, LoadOptions(offload_blocks=flag)) for flag in (False, True))
    x, t = torch.randn(2, *spec.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 500])
    condition = whole.encode_conditions([1, None])
    outside = held_bytes(apart.denoiser)
    with torch.no_grad():
        for _ in range(2):
            found, expected = (one.denoise(x, t, condition).value for one in (apart, whole))
            assert torch.equal(found, expected) and held_bytes(apart.denoiser) == outside
    offload = offload_of(apart.denoiser)
    assert offload is not None and offload.most_held == 2


def test_low_precision_and_other_memory_layouts_are_kept(tmp_path: Path) -> None:
    sd_unet.tiny(tmp_path)
    settings: dict[str, Any] = {"taps": ["up_blocks.1"], "timesteps": [100], "device": "cpu", "dtype": "bfloat16"}
    for flag in (True, False):
        whole = DiffusionFeatures.from_pretrained(str(tmp_path), **settings, channels_last=flag)
        parts = DiffusionFeatures.from_pretrained(str(tmp_path), **settings, channels_last=flag, offload="blocks")
        expected, found = read(whole), read(parts)
        assert all(torch.equal(found[cell], expected[cell]) for cell in expected)


@pytest.mark.parametrize("other", [{"compile": True}, {"lora": "x.safetensors"}, {"part": "vae"}])
def test_it_is_refused_where_blocks_must_stay(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="offload"):
        DiffusionFeatures.from_pretrained(str(tmp_path), taps=["x"], timesteps=[0], offload="blocks", **other)


def test_blocks_are_read_in_turn_onto_the_device_of_the_network() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    x, expected = torch.randn(2, 3), network(torch.ones(2, 3))
    kept = {path: {k: v.clone() for k, v in block.state_dict().items()} for path, block in network.named_children()}
    asked: list[str] = []

    def load_block(path: str) -> dict[str, Tensor]:
        asked.append(path)
        return kept[path]

    for block in network:
        empty(block)
    offload = BlockOffload(network, ["0", "1", "2"], load_block)
    move(network, torch.device("cpu"))
    assert torch.equal(network(torch.ones(2, 3)), expected) and held_bytes(network) == 0
    network(x)
    assert asked[:4] == ["0", "1", "2", "0"] and offload.most_held == 2
    assert offload_of(nn.Linear(2, 2)) is None
