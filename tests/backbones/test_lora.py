import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.check import check_backbone
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.lora import Lora, find_lora
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

UNET, TEXT_ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KERNEL = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"
LATE = "up_blocks.2.resnets.0.conv1"
KEYS = ["a", "b", "c", "d", "e"]
Features = Callable[..., DiffusionFeatures]


def factors(weight: Tensor, rank: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random factors of an update of a layer, in the shapes that trainers write: down, up."""
    generator = torch.Generator().manual_seed(seed)
    kernel = (1,) * (weight.ndim - 2)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    return down, torch.randn(weight.shape[0], rank, *kernel, generator=generator)


@pytest.fixture(scope="module")
def stored(tiny_sd: Path) -> dict[str, Tensor]:
    """Weights of the layers as they are on disk."""
    unet, text = (load_file(tiny_sd / part) for part in (UNET, TEXT_ENCODER))
    own = {key.removeprefix("text_model."): x for key, x in text.items()}
    return {layer: {**unet, **own}[f"{layer}.weight"] for layer in (LINEAR, KERNEL, TEXT, LATE)}


@pytest.fixture
def write(tmp_path: Path, stored: dict[str, Tensor]) -> Callable[..., Path]:
    """Write a LoRA of some layers in one of the conventions."""

    def make(*layers: str, style: str = "kohya", alpha: float | None = None, **metadata: str) -> Path:
        tensors: dict[str, Tensor] = {}
        for layer in layers:
            down, up = factors(stored[layer])
            if style == "kohya":
                stem = f"lora_te_text_model_{layer}" if layer == TEXT else f"lora_unet_{layer}"
                stem = stem.replace(".", "_")
                tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            else:
                stem = f"text_encoder.text_model.{layer}" if layer == TEXT else f"unet.{layer}"
                tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            if alpha is not None:
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        path = tmp_path / "lora.safetensors"
        save_file(tensors, path, metadata=metadata or None)
        return path

    return make


def weight_of(features: DiffusionFeatures, layer: str) -> Tensor:
    """Return the weights of a layer as they were loaded."""
    networks = features._backbone.components()
    network = networks["text_encoder" if layer == TEXT else "denoiser"]
    owner: Any = next(module for name, module in network.named_modules() if name.removeprefix("text_model.") == layer)
    return owner.weight.detach()


@pytest.mark.parametrize(("style", "alpha", "scale"), [("kohya", 1.0, 0.5), ("peft", 1.0, 0.5), ("kohya", None, 1.0)])
def test_the_update_is_weight_times_alpha_by_rank(
    style: str, alpha: float | None, scale: float, write: Callable[..., Path], load: Features, stored: dict[str, Tensor]
) -> None:
    layers = (LINEAR, KERNEL, TEXT)
    found = load(lora=f"{write(*layers, style=style, alpha=alpha)}@0.5")
    for layer in layers:
        before, (down, up) = stored[layer], factors(stored[layer])
        product = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(before.shape)
        torch.testing.assert_close(weight_of(found, layer), before + 0.5 * scale * product)


def test_features_are_those_of_a_folder_with_the_fused_weights(
    write: Callable[..., Path], load: Features, images: Tensor, tiny_sd: Path, tmp_path: Path
) -> None:
    found = load(lora=str(write(LINEAR, KERNEL, TEXT)))
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "fused"))
    for file, layers in ((UNET, (LINEAR, KERNEL)), (TEXT_ENCODER, (TEXT,))):
        tensors = load_file(folder / file)
        for layer in layers:
            name = f"{layer}.weight" if f"{layer}.weight" in tensors else f"text_model.{layer}.weight"
            tensors[name] = weight_of(found, layer).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    expected = DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[100], device="cpu")
    changed, plain = found(images, keys=KEYS), load()(images, keys=KEYS)
    for name, values in expected(images, keys=KEYS).items():
        assert torch.equal(values, changed[name]) and not torch.allclose(values, plain[name], rtol=1e-3)


def test_a_lora_of_the_text_encoder_alone_changes_features(
    write: Callable[..., Path], load: Features, images: Tensor
) -> None:
    fused, plain = (
        next(iter(features(images, keys=KEYS).values())) for features in (load(lora=str(write(TEXT))), load())
    )
    assert not torch.equal(fused, plain)


def test_the_fingerprint_has_file_and_weight_and_is_the_old_one_without_a_lora(
    write: Callable[..., Path], load: Features
) -> None:
    path = write(LINEAR)
    plain, whole, half = (load(lora=lora).plan.fingerprint for lora in (None, str(path), f"{path}@0.5"))
    assert "lora" not in str(plain)
    assert whole["weights"] == {**plain["weights"], "lora": f"{digest_file(path)}@1.0"}
    assert half["weights"]["lora"] == f"{digest_file(path)}@0.5"
    assert {**whole, "weights": None} == {**plain, "weights": None}


def test_peft_keeps_alpha_in_the_header(write: Callable[..., Path], load: Features, stored: dict[str, Tensor]) -> None:
    before = stored[LINEAR]
    down, up = factors(before)
    header = json.dumps({"unet.r": 2, "unet.lora_alpha": 6})
    found = weight_of(load(lora=str(write(LINEAR, style="peft", lora_adapter_metadata=header))), LINEAR)
    torch.testing.assert_close(found, before + 3 * up @ down)
    other = json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.use_rslora": True})
    with pytest.raises(WeightsMismatch, match=r"unet\.use_rslora"):
        load(lora=str(write(LINEAR, style="peft", lora_adapter_metadata=other)))


def test_a_lora_of_another_model_names_layers_and_shapes(write: Callable[..., Path], load: Features) -> None:
    path = write(LINEAR, KERNEL)
    tensors = load_file(path)
    stem = "lora_unet_" + LINEAR.replace(".", "_")
    tensors[f"{stem}.lora_down.weight"] = torch.zeros(2, 768)
    missing = "lora_unet_down_blocks_7_attentions_0_proj_in"
    tensors |= {f"{missing}.lora_down.weight": torch.zeros(2, 8), f"{missing}.lora_up.weight": torch.zeros(8, 2)}
    tensors |= {f"lora_te2_x.lora_{half}.weight": torch.zeros(2, 2) for half in ("down", "up")}
    save_file(tensors, path)
    with pytest.raises(WeightsMismatch, match="3 of 4 updates") as caught:
        load(lora=str(path))
    message = str(caught.value)
    assert f"{stem}.lora_down.weight [2, 768]" in message and "the layer has [32, 32]" in message
    assert f"{missing}.lora_down.weight: the backbone has no such layer" in message
    assert "of a part that the backbone does not have, 1: lora_te2_x" in message


def test_a_text_layer_of_another_model_is_refused_too(write: Callable[..., Path], load: Features) -> None:
    path = write(TEXT)
    save_file({key.replace("layers_0", "layers_99"): x for key, x in load_file(path).items()}, path)
    with pytest.raises(WeightsMismatch, match="layers_99"):
        load(lora=str(path))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_conv_in.hada_w1_a": torch.zeros(2)}, r"not those of a LoRA, 1: lora_unet_conv_in\.hada_w1_a"),
        ({"lora_unet_conv_in.lora_up.weight": torch.zeros(2, 2)}, "without the other one, 1: lora_unet_conv_in"),
        ({"vae.encoder.conv_in.weight": torch.zeros(2)}, r"vae\.encoder\.conv_in\.weight"),
    ],
)
def test_tensors_without_effect_are_refused(
    extra: dict[str, Tensor], message: str, write: Callable[..., Path], load: Features
) -> None:
    path = write(LINEAR)
    save_file({**load_file(path), **extra}, path)
    with pytest.raises(WeightsMismatch, match=message):
        load(lora=str(path))


def test_a_layer_that_is_changed_twice_is_refused(write: Callable[..., Path], load: Features) -> None:
    one = load_file(write(LINEAR))
    path = write(LINEAR, style="peft")
    save_file({**one, **load_file(path)}, path)
    with pytest.raises(WeightsMismatch, match="another tensor of the file changes the same layer"):
        load(lora=str(path))


def test_a_lora_after_the_deepest_tap_has_no_effect(write: Callable[..., Path], load: Features) -> None:
    path = write(LATE)
    with pytest.raises(ConfigError, match="no effect on these taps"):
        load(lora=str(path))
    assert load(lora=str(path), taps=["up_blocks.2"])


def test_a_file_that_is_not_finite_is_refused(write: Callable[..., Path], load: Features) -> None:
    path = write(LINEAR)
    save_file({key: x * torch.inf for key, x in load_file(path).items()}, path)
    with pytest.raises(WeightsMismatch, match="NaN or infinity"):
        load(lora=str(path))


@pytest.mark.parametrize("weight", ["0", "nan", "inf", "much", ""])
def test_a_weight_is_a_finite_number_other_than_0(weight: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ConfigError, match="is not a weight"):
        find_lora(f"{tmp_path}/a.safetensors@{weight}")


def test_files_are_found_by_name_with_and_without_weight(tmp_path: Path) -> None:
    plain, odd = tmp_path / "a.safetensors", tmp_path / "a@2.safetensors"
    for path in (plain, odd):
        path.touch()
    assert find_lora(str(plain)) == Lora(plain) and find_lora(f"{plain}@-0.5") == Lora(plain, -0.5)
    assert find_lora(str(odd)) == Lora(odd) and find_lora(f"{odd}@2") == Lora(odd, 2.0)
    (tmp_path / "b.pt").touch()
    for name, message in (("b.pt", "pickles are never read"), ("c.safetensors", "does not exist"), ("", "is a folder")):
        with pytest.raises(WeightsMissing, match=message):
            find_lora(f"{tmp_path}/{name}")


def test_backbones_without_trained_weights_take_no_lora(write: Callable[..., Path], load: Features) -> None:
    path = str(write(LINEAR))
    with pytest.raises(ConfigError, match="random_weights=true"):
        load(lora=path, random_weights=True)
    with pytest.raises(WeightsMissing, match="pixels"):
        DiffusionFeatures.from_pretrained("pixels", taps=["pixels"], timesteps=[0], lora=path)


def test_the_check_compares_a_lora_with_headers_alone(write: Callable[..., Path], tiny_sd: Path) -> None:
    path = write(LINEAR, TEXT)
    assert not check_backbone(str(tiny_sd), lora=f"{path}@0.5").faults
    save_file({key.replace("mid_block", "mid_blocks"): x for key, x in load_file(path).items()}, path)
    [fault] = check_backbone(str(tiny_sd), lora=str(path)).faults
    assert "1 of 2 updates" in str(fault) and "mid_blocks" in str(fault)
