"""Weights in 8 bits: features of dequantised weights, only linear layers of blocks change, refusals."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit, sd3
from diffprobe.backbones.plan import make_configs, make_plan
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.backbones.quantized import linear_layers, packed_bytes, planned_bytes, quantize
from diffprobe.config.parse import parse
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError

FORMATS = ("int8", "fp8")
SETTINGS: dict[str, Any] = {"timesteps": [100, 300], "device": "cpu", "resolution": 32, "condition": "empty"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(dit.tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def load(folder: str) -> Callable[..., DiffusionFeatures]:
    return lambda **changes: DiffusionFeatures.from_pretrained(
        folder, **{**SETTINGS, "taps": ["transformer_blocks.0", "transformer_blocks.1"], **changes}
    )


def read(features: DiffusionFeatures, n: int = 2) -> dict[str, Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return features(images[:n], keys=["a", "b"][:n])


def rounded(weight: Tensor, how: str) -> Tensor:
    """Round each row of a weight to the values of a format, by a plain computation."""
    largest = {"int8": 127.5, "fp8": 448.0}[how]
    scale = weight.abs().amax(1, keepdim=True) / largest
    if how == "int8":
        return (weight / scale).round().clamp(-128, 127) * scale
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def network(features: DiffusionFeatures) -> nn.Module:
    return features._backbone.denoiser


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"random_weights": True, "random_seed": 3}], ids=["trained", "random"])
def test_features_are_those_of_the_rounded_weights(
    how: str, changes: dict[str, Any], load: Callable[..., DiffusionFeatures]
) -> None:
    pytest.importorskip("torchao")
    whole, quantised = load(**changes), load(quantize=how, **changes)
    plain, found = read(whole), read(quantised)
    paths = linear_layers(network(whole), ["transformer_blocks.0", "transformer_blocks.1"])
    assert paths and all(".attn1." in path or ".ff." in path or ".norm1." in path for path in paths)
    for path in paths:
        layer: Any = network(whole).get_submodule(path)
        own: Any = network(quantised).get_submodule(path)
        expected = rounded(layer.weight, how)
        step = float(layer.weight.abs().amax()) / (127 if how == "int8" else 8)
        torch.testing.assert_close(own.weight.dequantize(), layer.weight, atol=step, rtol=0)
        torch.testing.assert_close(own.weight.dequantize(), expected, atol=1e-2 * step, rtol=1e-2)
        layer.weight.copy_(own.weight.dequantize())
    again = read(whole)
    for cell, values in found.items():
        assert float((values - plain[cell]).norm()) > 1e-4 * float(plain[cell].norm())  # it has an effect
        torch.testing.assert_close(values, again[cell], atol=1e-5, rtol=1e-4)
    outside = {name: value for name, value in network(whole).state_dict().items() if "transformer_blocks" not in name}
    kept = network(quantised).state_dict()
    assert outside and all(torch.equal(value, kept[name]) for name, value in outside.items())


@pytest.mark.parametrize("how", FORMATS)
def test_what_is_held_is_smaller_and_rows_and_batches_do_not_matter(
    how: str, load: Callable[..., DiffusionFeatures]
) -> None:
    pytest.importorskip("torchao")
    whole, quantised = load(), load(quantize=how)
    block = ["transformer_blocks.0"]
    n = sum(network(whole).get_submodule(path).weight.numel() for path in linear_layers(network(whole), block))  # type: ignore[misc, operator]
    saved = [packed_bytes(network(one).get_submodule(*block)) for one in (whole, quantised)]
    assert 2.5 * n < saved[0] - saved[1] <= 3 * n
    alone, one_row = read(quantised, 1), read(load(quantize=how, max_rows_per_pass=1))
    for cell, values in read(quantised).items():
        torch.testing.assert_close(alone[cell], values[:1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one_row[cell], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", FORMATS)
def test_random_blocks_are_those_of_a_network_that_is_drawn_whole(
    how: str, load: Callable[..., DiffusionFeatures]
) -> None:
    pytest.importorskip("torchao")
    changes: dict[str, Any] = {"random_weights": True, "random_seed": 3, "dtype": "bfloat16"}
    whole, found = network(load(**changes)), network(load(quantize=how, **changes))
    for block in ("transformer_blocks.0", "transformer_blocks.1"):
        quantize(whole.get_submodule(block), how)
    expected = whole.state_dict()
    for name, value in found.state_dict().items():
        flatten = getattr(value, "__tensor_flatten__", None)
        parts = [""] if flatten is None else flatten()[0]
        pairs = [(value, expected[name]) if not part else (getattr(value, part), getattr(expected[name], part))
                 for part in parts]  # fmt: skip
        assert all(torch.equal(a.float(), b.float()) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", FORMATS)
def test_the_planned_bytes_are_those_that_are_held(how: str, dtype: torch.dtype) -> None:
    block = nn.Sequential(nn.Linear(10, 7), nn.LayerNorm(3), nn.Linear(7, 4, bias=False))
    with torch.device("meta"):
        described = nn.Sequential(nn.Linear(10, 7), nn.LayerNorm(3), nn.Linear(7, 4, bias=False))
    assert planned_bytes(described, dtype) == packed_bytes(block.to(dtype))
    pytest.importorskip("torchao")
    quantize(block, how)
    assert planned_bytes(described, dtype, how) == packed_bytes(block)


def test_a_unet_in_bfloat16_keeps_its_convolutions(tiny_sd: Path) -> None:
    pytest.importorskip("torchao")
    settings: dict[str, Any] = {**SETTINGS, "taps": ["mid_block"], "timesteps": [100], "dtype": "bfloat16"}
    whole = DiffusionFeatures.from_pretrained(str(tiny_sd), **settings)
    found = DiffusionFeatures.from_pretrained(str(tiny_sd), **settings, quantize="int8")
    (one,), (other,) = read(whole).values(), read(found).values()
    assert 0 < float((one - other).norm()) < 0.1 * float(one.norm())
    assert type(network(found).get_submodule("mid_block.resnets.0.conv1").weight) is nn.Parameter
    assert other.isfinite().all()


def test_the_format_is_part_of_the_fingerprint(folder: str) -> None:
    options = {**SETTINGS, "taps": ["transformer_blocks.0"]}
    prints = [make_plan(*make_configs(folder, {**options, "quantize": how})).fingerprint for how in ("none", *FORMATS)]
    assert "quantize" not in prints[0] and [one["quantize"] for one in prints[1:]] == ["int8", "fp8"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": "a.safetensors"}, "lora"),
        ({"compile": True}, "compile"),
        ({"offload": "blocks"}, "offload"),
        ({"part": "vae"}, "quantize"),
    ],
)
def test_settings_that_clash_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        BackboneConfig(path="x", quantize="int8", **changes)


def test_it_is_refused_where_it_has_no_effect() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        make_plan(*make_configs("pixels", {"taps": ["pixels"], "timesteps": [0], "quantize": "int8"}))


@pytest.mark.parametrize("how", FORMATS)
def test_prompts_are_sampled_with_the_quantised_denoiser(tmp_path: Path, how: str) -> None:
    pytest.importorskip("torchao")
    folder = str(sd3.tiny(tmp_path / "sd3"))

    def latents(form: str) -> torch.Tensor:
        tree = {
            "backbone": {"path": folder, "quantize": form, "device": "cpu"}, "prompts": "x.txt",
            "features": {"taps": ["transformer_blocks.0"], "timesteps": [1000], "keep": ["latents"], "resolution": 32},
            "sampling": {"steps": 4},
        }  # fmt: skip
        model = PromptFeatures.from_config(parse(PromptExtraction, tree))
        return model(["a red cat"], [0])["latents@t0:caption:none"]

    whole, found = latents("none"), latents(how)
    assert 0 < float((found - whole).norm() / whole.norm()) < 0.2


def test_without_the_library_the_message_names_it(
    load: Callable[..., DiffusionFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match="torchao"):
        quantize(nn.Linear(4, 4), "int8")
    with pytest.raises(ConfigError, match="quantize=int8"):
        load(quantize="int8")
