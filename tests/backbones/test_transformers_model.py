"""Models of transformers are made from known settings and tensors in memory: no file, name or code reaches it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.testing.tiny_transformer import tiny_t5
from diffprobe.backbones.transformers_model import load_transformer, make_text_config, model_class
from diffprobe.core.errors import WeightsMismatch, WeightsMissing


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sd / "text_encoder", tmp_path / "text_encoder")


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def load(folder: Path, **settings: Any) -> Any:
    from transformers import CLIPTextModel

    return load_transformer(CLIPTextModel, folder, dtype=torch.float32, **settings)


@torch.no_grad()
def states(model: Any) -> torch.Tensor:
    return model(torch.arange(12).reshape(1, 12))[0]


def test_a_model_is_that_of_the_library(folder: Path) -> None:
    from transformers import CLIPTextModel

    ours, theirs = load(folder), CLIPTextModel.from_pretrained(folder)
    assert torch.equal(states(ours), states(theirs))
    assert ours.config._attn_implementation == theirs.config._attn_implementation == "sdpa"
    assert load(folder, attention="eager").config._attn_implementation == "eager"
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


def test_a_t5_encoder_is_that_of_the_library_with_its_shared_embedding(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    _, encoder = tiny_t5(tmp_path / "words")
    encoder.save_pretrained(tmp_path / "t5")
    ours = load_transformer(T5EncoderModel, tmp_path / "t5", dtype=torch.float32)
    assert torch.equal(states(ours), states(T5EncoderModel.from_pretrained(tmp_path / "t5").eval()))
    assert ours.shared.weight is ours.encoder.embed_tokens.weight


@pytest.mark.parametrize(
    "settings",
    [
        {"_attn_implementation": "someone/kernels"},
        {"attn_implementation": "someone/kernels"},
        {"_attn_implementation_internal": "someone/kernels"},
        {"dtype": "float16", "torch_dtype": "float16"},
        {"transformers_weights": "x.bin"},
        {"fusion_config": {"patch_embeddings": True}},
        {"return_dict": False, "output_hidden_states": True, "torchscript": True},
        {"_name_or_path": "someone/model", "name_or_path": "someone/model"},
    ],
)
def test_settings_that_choose_code_files_or_form_have_no_effect(settings: dict[str, Any], folder: Path) -> None:
    expected = states(load(folder))
    change(folder, **settings)
    found = load(folder)
    assert torch.equal(states(found), expected)
    assert found.config._attn_implementation == "sdpa" and found.dtype == torch.float32


def test_the_text_part_of_a_whole_clips_config_is_taken(folder: Path) -> None:
    from transformers import CLIPTextConfig

    path = folder / "config.json"
    inner = json.loads(path.read_text())
    expected = make_text_config(CLIPTextConfig, path)
    path.write_text(json.dumps({"model_type": "clip", "text_config": inner, "hidden_size": 3}))
    found = make_text_config(CLIPTextConfig, path)
    assert found.to_dict() == expected.to_dict() and found.hidden_size == 32


def damage_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(next(iter(t))),
        lambda t: t.update({key: value[:1].clone() for key, value in t.items()}),
        lambda t: t.update({key: torch.zeros(value.numel() + 1) for key, value in t.items()}),
        lambda t: t.clear(),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Callable[[dict], object], folder: Path) -> None:
    damage_weights(folder, change)
    with pytest.raises(WeightsMismatch, match=str(folder)):
        load(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsMismatch, match=r"model\.safetensors' is not a readable safetensors file"):
        load(folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsMismatch, match=r"model\.safetensors' is a git-lfs pointer"):
        load(folder)
    path.unlink()
    with pytest.raises(WeightsMissing, match="text_encoder"):
        load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 31},
        {"hidden_size": "x"},
        {"hidden_act": "nothing"},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 9},
    ],
)
def test_configs_that_do_not_fit_are_named(settings: dict[str, Any], folder: Path) -> None:
    change(folder, **settings)
    with pytest.raises(WeightsMismatch, match=str(folder)):
        load(folder)


def test_the_class_of_a_model_comes_from_its_type(tiny_teacher: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    assert model_class(tiny_teacher) is BertModel
    expected = states(BertModel.from_pretrained(tiny_teacher).eval())
    found = load_transformer(BertModel, tiny_teacher, dtype=torch.float32, declared_only=False)
    assert torch.equal(states(found), expected)
    for name in ("my_model", ["bert"], None):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(WeightsMismatch, match="config.json.*model_type"):
            model_class(tmp_path)
