"""A config is read once, and whatever changes a network changes its digest."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.locate import locate
from diffprobe.backbones.noise import load_schedule
from diffprobe.backbones.part_config import has_part, positive, read_model_index, read_part_config
from diffprobe.core.errors import DiffprobeError, WeightsMismatch, WeightsMissing

PARTS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")
HIDDEN: dict[str, Any] = {
    "_use_default_values": [],
    "_attn_implementation": "someone/kernels",
    "_attn_implementation_internal": "eager",
    "attn_implementation": "someone/kernels",
    "_name_or_path": "elsewhere",
    "_diffusers_version": "0.1.0",
    "_commit_hash": "0" * 40,
    "transformers_version": "3.0.0",
    "torch_dtype": "float16",
    "dtype": "float16",
    "use_attention_mask": True,
    "return_dict": False,
    "output_attentions": True,
    "tokenizer_file": "/dev/null",
    "name_or_path": "elsewhere",
    "chat_template": "{{ x }}",
}
FILES = {
    "tokenizer/added_tokens.json": {"cat": 3},
    "tokenizer/special_tokens_map.json": {"pad_token": "a</w>"},
    "tokenizer/config.json": {"model_type": "clip", "vocab_size": 3},
    "tokenizer/tokenizer.4.0.0.json": {},
    "tokenizer/chat_template.jinja": {},
    "text_encoder/adapter_config.json": {"base_model_name_or_path": "someone/model"},
    "text_encoder/generation_config.json": {"max_length": 3},
    "unet/adapter_config.json": {},
}


def config_of(folder: Path, part: str) -> Path:
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    return folder / part / names.get(part, "config.json")


def edits(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (part, new config) for every key: changed, removed, reset to its default; and for every hidden key."""
    for part in PARTS:
        config = json.loads(config_of(folder, part).read_text())
        for key, value in config.items():
            yield part, {name: kept for name, kept in config.items() if name != key}
            yield part, config | {"_use_default_values": [key]}
            yield part, config | {key: changed(value)}
        for key, value in HIDDEN.items():
            yield part, config | {key: value}


def changed(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value[::-1] if value else ["x"]


def digest(folder: Path) -> object:
    found = locate(str(folder))
    return sd_unet.digests(found, True), load_schedule(found.part("scheduler")).digest


def features(folder: Path) -> torch.Tensor:
    model = DiffusionFeatures.from_pretrained(
        str(folder), taps=["up_blocks.1"], timesteps=[300], condition="prompt", prompt="red cat", device="cpu"
    )
    images = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    return next(iter(model(images, keys=["a"]).values()))


def test_hidden_keys_and_files_change_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    """All hidden keys of all parts at once, and files that libraries look for beside the known ones."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    for part in PARTS[:-1]:
        path = config_of(folder, part)
        hidden = {key: value for key, value in HIDDEN.items() if key.startswith("_")}
        path.write_text(json.dumps(json.loads(path.read_text()) | hidden))
    for name, content in FILES.items():
        if not name.endswith(("added_tokens.json", "special_tokens_map.json")):
            (folder / name).write_text(json.dumps(content))
    assert digest(folder) == digest(tiny_sd)
    assert torch.equal(features(folder), features(tiny_sd))


@pytest.mark.slow
def test_a_key_changes_the_digest_or_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    """Every key of every part, edited, removed and reset; files that libraries look for beside the known ones."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    same, before = features(folder), digest(folder)
    counts = {"digest": 0, "refused": 0, "equal": 0}

    def judge(what: object) -> None:
        try:
            if digest(folder) != before:
                counts["digest"] += 1
                return
            found = features(folder)
        except DiffprobeError:
            counts["refused"] += 1
            return
        assert torch.equal(found, same), f"other features under the same digest: {what}"
        counts["equal"] += 1

    for part, config in edits(folder):
        path = config_of(folder, part)
        original = path.read_text()
        path.write_text(json.dumps(config))
        judge((part, config))
        path.write_text(original)
    for name, content in FILES.items():
        path = folder / name
        path.write_text(json.dumps(content))
        judge(name)
        path.unlink()
    assert counts["digest"] > 200 and counts["equal"] > 15, counts


def test_reset_keys_have_the_defaults_of_diffusers(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_use_default_values": ["scaling_factor"]}))
    assert digest(folder) != digest(tiny_sd)
    ours = DiffusionFeatures.from_pretrained(str(folder), taps=["mid_block"], timesteps=[0], device="cpu")
    theirs = AutoencoderKL.from_pretrained(folder / "vae")
    images = torch.rand(1, 3, 32, 32)
    expected = theirs.encode(images * 2 - 1).latent_dist.mode() * theirs.config.scaling_factor
    torch.testing.assert_close(ours.encode(images), expected, atol=1e-5, rtol=0)


def test_what_has_no_effect_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"_class_name": "A", "_x": 1, "a": 1, "b": 2, "_use_default_values": ["b"]}')
    assert read_part_config(path) == {"_class_name": "A", "a": 1}
    with pytest.raises(WeightsMissing, match="no nothing.json"):
        read_part_config(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"_class_name": ["a", "B"]}', "_class_name.*'B'"),
        ('{"auto_map": {"AutoModel": "code.Model"}}', "auto_map.*never run"),
        ('{"quantization_config": {"load_in_4bit": true}}', "quantised"),
        ('{"_use_default_values": "scaling_factor"}', "_use_default_values"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": "\\ud800"}', "Unicode"),
        ("[]", "expected an object"),
        ("[" * 100_000, "nested"),
        ("version https://git-lfs.github.com/spec/v1", "git-lfs"),
    ],
)
def test_configs_that_cannot_be_taken_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(WeightsMismatch, match=f"(?s)config.json.*{message}"):
        read_part_config(path)


def test_infinity_is_taken_where_diffusers_writes_it(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"lambda_min_clipped": -Infinity}')
    assert read_part_config(tmp_path / "c.json", non_finite=True) == {"lambda_min_clipped": -float("inf")}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "_class_name.*never run"),
        ({}, "_class_name"),
        ({"_class_name": "P", "unet": ["diffusers"]}, "unet"),
        ({"_class_name": "P", "unet": [1, 2]}, "unet"),
    ],
)
def test_indexes_that_name_no_classes_are_refused(index: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsMismatch, match=f"(?s)model_index.json.*{message}"):
        read_model_index(path)


def test_parts_are_those_with_library_and_class() -> None:
    index = {"a": ["diffusers", "A"], "b": [None, None], "c": "x", "d": 3}
    assert [has_part(index, name) for name in "abcde"] == [True, False, False, False, False]


def test_whole_numbers_of_at_least_one() -> None:
    assert positive({"n": 3}, "n", 1, where="x") == 3 and positive({}, "n", 4, where="x") == 4
    for value in (0, -1, True, 1.5, "3", None, [1]):
        with pytest.raises(WeightsMismatch, match="x.*n is"):
            positive({"n": value}, "n", 1, where="x")
