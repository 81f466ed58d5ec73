"""A tokenizer comes from the files that are digested, and from nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.unet import digest_tokenizer
from diffprobe.core.errors import WeightsMismatch, WeightsMissing

TEXTS = ["noto emoji, red cat", "", "a b c"]


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sd / "tokenizer", tmp_path / "tokenizer")


def load(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return load_tokenizer(CLIPTokenizer, folder)


def change(folder: Path, **settings: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_tokens_are_those_of_the_library(folder: Path) -> None:
    from transformers import CLIPTokenizer

    assert load(folder)(TEXTS).input_ids == CLIPTokenizer.from_pretrained(folder)(TEXTS).input_ids


def test_settings_that_lead_elsewhere_have_no_effect(folder: Path, tmp_path: Path) -> None:
    expected = load(folder)(TEXTS).input_ids
    other = tmp_path / "other.json"
    other.write_text("{}")
    names = ("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "added_tokens_file")
    change(folder, **dict.fromkeys(names, str(other)), fast_tokenizer_files=["tokenizer.4.0.0.json"])
    (folder / "tokenizer.4.0.0.json").write_text("{}")
    assert load(folder)(TEXTS).input_ids == expected


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_files_of_older_versions_count_and_are_digested(name: str, folder: Path) -> None:
    content = {"cat": 152} if name.startswith("added") else {"pad_token": "a</w>"}
    (folder / "tokenizer_config.json").unlink()  # without it they are read
    before, digest = load(folder)(TEXTS, padding=True).input_ids, digest_tokenizer(folder)
    (folder / name).write_text(json.dumps(content))
    assert digest_tokenizer(folder) != digest
    assert load(folder)(TEXTS, padding=True).input_ids != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_map": {"AutoTokenizer": ["code.Words", None]}}, "auto_map.*never run"),
        ({"init_inputs": ["/etc/passwd"]}, "init_inputs"),
        ({"vocab": {"a": 0}}, "vocab"),
        ({"extra_ids": 10**9}, "extra_ids"),
        ({"model_max_length": 0}, "model_max_length"),
        ({"model_max_length": "77"}, "model_max_length"),
        ({"added_tokens_decoder": {"x": 1}}, "tokenizer"),
        ({"pad_token": 3}, "tokenizer"),
    ],
)
def test_settings_that_cannot_be_taken_are_named(settings: dict[str, Any], message: str, folder: Path) -> None:
    change(folder, **settings)
    with pytest.raises(WeightsMismatch, match=f"(?s){folder}.*{message}"):
        load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        lambda path: path.write_text("[" * 10**5),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_damaged_files_are_named(damage: Callable[[Path], object], folder: Path) -> None:
    damage(folder / "tokenizer.json")
    with pytest.raises(WeightsMismatch, match=str(folder)):
        load(folder)


def test_files_beyond_all_measure_are_not_read(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 2**33)
    with pytest.raises(WeightsMismatch, match=r"tokenizer\.json.*8,589,934,592 bytes"):
        load(folder)


def test_a_vocabulary_is_required(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(WeightsMissing, match="no vocabulary"):
        require_vocabulary(tmp_path)
    (tmp_path / "tokenizer" / "spiece.model").touch()
    require_vocabulary(tmp_path)
