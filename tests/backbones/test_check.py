import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffprobe.backbones import weights
from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.check import check_backbone, stated_licence
from diffprobe.backbones.families import describe, dit
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.backbones.offload import offload_of
from diffprobe.backbones.quantized import linear_layers, packed_bytes
from diffprobe.backbones.weights import DENOISERS
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import FAMILIES

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


@pytest.mark.parametrize("name", FAMILIES.names())
def test_every_family_can_be_read_and_has_an_estimate(name: str, tmp_path: Path) -> None:
    path = "pixels" if name == "pixels" else str(FAMILIES.load(name).tiny(tmp_path))
    found = check_backbone(path)
    assert (found.faults, found.family) == ([], name)
    assert found.memory is not None and found.memory.largest >= found.memory.batch > 0
    assert name == "pixels" or sum(part.n_parameters or 0 for part in found.parts) * 4 == found.memory.weights


def test_no_weights_are_read(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(weights, "_read", refuse)
    found = check_backbone(str(tiny_sd))
    sizes = {part.name: part.n_bytes for part in found.parts}
    assert sizes["unet"] == (tiny_sd / UNET).stat().st_size and sizes["tokenizer"] == 0
    assert not found.faults


def test_all_faults_are_listed(copy: Path) -> None:
    (copy / UNET).unlink()
    (copy / "text_encoder/config.json").unlink()
    for path in (copy / "tokenizer").glob("*"):
        path.unlink()
    vae = copy / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    tensors["encoder.conv_in.weight"] = torch.zeros(1)
    del tensors["encoder.conv_out.bias"]
    save_file(tensors, vae)
    found = check_backbone(str(copy))
    said = "\n".join(map(str, found.faults))
    for fact in ("missing: unet", "text_encoder", "has no vocabulary", "of another shape 1: encoder.conv_in.weight"):
        assert fact in said
    assert "missing 1: encoder.conv_out.bias" in said
    assert [part.name for part in found.parts] == ["scheduler"] and found.memory is None


def test_a_text_encoder_without_a_tensor_is_found(copy: Path) -> None:
    path = copy / "text_encoder/model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("layer_norm1.bias"))
    tensors["another"] = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    [fault] = check_backbone(str(copy)).faults
    assert "text_encoder" in str(fault) and name.removeprefix("text_model.") in str(fault)


def test_a_truncated_file_is_found(copy: Path) -> None:
    content = (copy / UNET).read_bytes()
    (copy / UNET).write_bytes(content[: len(content) // 2])
    [fault] = check_backbone(str(copy)).faults
    assert UNET in str(fault) and "not a readable safetensors file" in str(fault)


def test_a_decoder_is_not_needed(copy: Path) -> None:
    vae = copy / "vae/diffusion_pytorch_model.safetensors"
    save_file({key: x for key, x in load_file(vae).items() if not key.startswith("decoder.")}, vae)
    assert not check_backbone(str(copy)).faults


def test_a_pipeline_of_no_family_names_the_families(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "AudioLDMPipeline"}))
    [fault] = check_backbone(str(copy)).faults
    assert "AudioLDMPipeline" in str(fault) and "sd_unet" in str(fault)


def test_a_resolution_that_it_cannot_have_is_an_error_of_the_command(tiny_sd: Path) -> None:
    with pytest.raises(ConfigError, match="33"):
        check_backbone(str(tiny_sd), resolution=33)


def test_a_hub_id_is_read_from_the_cache_alone(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")

    def no_network(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    root = tmp_path / "models--some--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    shutil.copytree(tiny_sd, root / "snapshots" / ("0" * 40))
    assert not check_backbone("some/model").faults
    [fault] = check_backbone("other/model").faults
    assert "hf download other/model" in str(fault)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags:\n- a\n---\n# Model", "mit"),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n", "own (LICENSE)"),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags: []\n---\nlicense: mit", None),
    ],
)
def test_the_licence_is_that_of_the_front_matter(card: str, licence: str | None, tmp_path: Path) -> None:
    assert stated_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(card)
    assert stated_licence(tmp_path) == licence


def test_half_precision_halves_the_estimate_and_a_batch_is_bounded_by_the_pass(tiny_sd: Path) -> None:
    full, half = (check_backbone(str(tiny_sd), dtype=dtype).memory for dtype in ("float32", "bfloat16"))
    assert full is not None and half is not None
    assert (half.weights, half.denoising) == (full.weights // 2, full.denoising // 2)
    large = check_backbone(str(tiny_sd), batch_size=10**6).memory
    assert large is not None and large.denoising == large.full_pass and large.rows == large.most_rows
    assert locate(str(tiny_sd)).folder == tiny_sd


def held(network: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in network.parameters() if not x.is_meta)


def others(folder: str, **settings: Any) -> int:
    """Return the bytes of all parts but the denoiser."""
    found = check_backbone(folder, **settings)
    assert found.memory is not None
    return found.memory.weights - 4 * next(part.n_parameters or 0 for part in found.parts if part.name in DENOISERS)


@pytest.mark.parametrize("family", ["dit", "sd_unet", "flux"])
def test_with_offload_the_weights_are_those_that_a_pass_holds(family: str, tmp_path: Path) -> None:
    folder = str(FAMILIES.load(family).tiny(tmp_path))
    checkpoint = locate(folder)
    found, spec = describe(checkpoint, None)
    backbone = load_whole(checkpoint, found, spec, LoadOptions(offload_blocks=True))
    offload = offload_of(backbone.denoiser)
    assert offload is not None
    most = 0

    def count(module: nn.Module, args: Any) -> None:
        nonlocal most
        ahead = offload._ahead
        read = {} if ahead is None else ahead[1].result()
        most = max(most, held(backbone.denoiser) + sum(x.numel() * x.element_size() for x in read.values()))

    for path in offload.blocks:
        backbone.denoiser.get_submodule(path).register_forward_pre_hook(count)
    condition = backbone.encode_conditions([None])
    with torch.no_grad():
        backbone.denoise(torch.zeros(1, *spec.latent_shape), torch.tensor([3]), condition)
    memory = check_backbone(folder, offload="blocks").memory
    assert memory is not None and memory.weights - others(folder) == most and memory.loading == 0
    assert most < 0.95 * held(load_whole(checkpoint, found, spec, LoadOptions()).denoiser)


def test_with_quantize_the_weights_are_those_in_8_bits(tmp_path: Path) -> None:
    folder = str(dit.tiny(tmp_path))
    checkpoint = locate(folder)
    found, spec = describe(checkpoint, None)
    whole = load_whole(checkpoint, found, spec, LoadOptions()).denoiser
    for how, per_channel in (("int8", 5), ("fp8", 4)):
        memory = check_backbone(folder, quantize=how).memory  # type: ignore[arg-type]
        layers: list[Any] = [whole.get_submodule(path) for path in linear_layers(whole, spec.blocks)]
        saved = sum(3 * layer.weight.numel() - per_channel * layer.out_features for layer in layers)
        assert memory is not None and memory.weights - others(folder) == held(whole) - saved
        assert memory.loading == max(held(whole.get_submodule(path)) for path in spec.blocks)
        if find_spec("torchao") is not None:
            network = load_whole(checkpoint, found, spec, LoadOptions(quantize=how)).denoiser
            buffers = sum(x.numel() * x.element_size() for x in network.buffers())
            assert memory.weights - others(folder) == packed_bytes(network) - buffers


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("pixels", {"offload": "blocks"}, "offload has no effect"),
        ("pixels", {"quantize": "int8"}, "quantize has no effect"),
        ("pixels", {"offload": "blocks", "quantize": "int8"}, "quantize=int8 with offload"),
    ],
)
def test_settings_without_effect_or_that_clash_are_refused(
    backbone: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_backbone(backbone, **settings)
