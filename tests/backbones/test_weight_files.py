"""Which safetensors files of a part are read: all layouts that the libraries write, nothing outside of the folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.text_encoders import load_clip_text
from diffprobe.backbones.weight_files import lack_of_weights, layouts, require_files, weight_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from tests.hostile.harness import Canary, canary

__all__ = ["canary"]  # a fixture
STEM = "diffusion_pytorch_model"
LAYOUTS = [
    pytest.param({"variant": variant, "max_shard_size": size}, id=f"{variant or 'plain'}-{size or 'whole'}")
    for variant in (None, "fp16")
    for size in (None, "60KB")
]


def saved(pipeline: Any, folder: Path, **settings: object) -> Path:
    given = {name: value for name, value in settings.items() if value is not None}
    pipeline.save_pretrained(folder, safe_serialization=True, **given)
    return folder


@pytest.mark.parametrize("settings", LAYOUTS)
def test_layouts_that_the_libraries_write_are_read(settings: dict[str, Any], tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for part, kind in kinds.items():
        model = kind.from_pretrained(tiny_sd / part)
        shutil.rmtree(folder / part)
        saved(model, folder / part, **settings)
        sharded = settings["max_shard_size"] is not None
        assert (len(weight_files(folder / part)) > 1) == sharded
        [found] = layouts(folder / part)
        assert (found.variant, found.is_sharded) == (settings["variant"] or "", sharded)
    want, found = (
        DiffusionFeatures.from_pretrained(
            str(path), taps=["mid_block"], timesteps=[9], condition="prompt", prompt="cat", device="cpu"
        )(torch.full((1, 3, 32, 32), 0.5), keys=["a"])
        for path in (tiny_sd, folder)
    )
    assert all(torch.equal(want[name], found[name]) for name in want)


def shard(folder: Path, variant: str, index_name: str, shard_name: str) -> None:
    """Replace the weights of a part by two shards with an index."""
    whole = folder / f"{STEM}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    files = {shard_name.format(i, variant): part for i, part in enumerate((names[:9], names[9:]), start=1)}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / index_name.format(variant)).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("index", "file"),
    [
        (STEM + ".safetensors.index.{}.json", STEM + ".{1}-0000{0}-of-00002.safetensors"),
        (STEM + ".safetensors.index.{}.json", STEM + "-0000{0}-of-00002.{1}.safetensors"),
        (STEM + ".safetensors.{}.index.json", STEM + "-0000{0}-of-00002.{1}.safetensors"),
    ],
)
def test_both_namings_of_sharded_variants_are_read(index: str, file: str, tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "unet", tmp_path / "unet")
    shard(folder, "fp16", index, file)
    assert [path.name for path in weight_files(folder)] == [file.format(i, "fp16") for i in (1, 2)]
    require_files(folder)


def test_several_variants_are_named_and_none_is_chosen(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "unet", tmp_path / "unet")
    shutil.copy(folder / f"{STEM}.safetensors", folder / f"{STEM}.non_ema.safetensors")
    assert [path.name for path in weight_files(folder)] == [f"{STEM}.safetensors"]
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.fp16.safetensors")
    with pytest.raises(WeightsMissing, match=r"(?s)several variants.*fp16.*non_ema.*keep one"):
        require_files(folder)


def test_weights_that_are_there_twice_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    """diffusers would take the shards, transformers the file."""
    folder = shutil.copytree(tiny_sd / "unet", tmp_path / "unet")
    (folder / f"{STEM}.safetensors.index.json").write_text('{"weight_map": {"a": "a.safetensors"}}')
    with pytest.raises(WeightsMismatch, match="twice"):
        weight_files(folder)


def test_lost_shards_and_pickles_are_named(tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd / "unet", tmp_path / "unet")
    shard(folder, "", STEM + ".safetensors.index.json", STEM + "-0000{}-of-00002.safetensors")
    (folder / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=rf"not there: {STEM}-00002-of-00002"):
        require_files(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / f"{STEM}.bin").touch()
    assert "pickles" in str(lack_of_weights(folder))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors", "a/model.safetensors",
        "..\\m.safetensors", "C:model.safetensors", "\x1b[2Jm.safetensors", ".safetensors/../x",
        3, None, ["model.safetensors"],
    ],
)  # fmt: skip
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsMismatch, match=r"(?s)model\.safetensors\.index\.json.*pickles are never read"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": {}}', '{"weight_map": ["a"]}', "{}", "[]", "{", "\x00"])
def test_an_index_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsMismatch, match=r"model\.safetensors\.index\.json"):
        weight_files(tmp_path)


def test_pickles_named_by_an_index_are_not_opened(tiny_sd: Path, tmp_path: Path, canary: Canary) -> None:
    """transformers follows the index to torch.load."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd") / "text_encoder"
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "x.bin").write_bytes(canary.torch_file())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "x.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsMismatch, match=r"index\.json.*safetensors"):
        load_clip_text(folder.parent, dtype=torch.float32)


def test_links_lead_into_the_folder_or_into_the_hubs_cache(tmp_path: Path) -> None:
    outside, part = tmp_path / "outside.safetensors", tmp_path / "part"
    outside.touch()
    part.mkdir()
    (part / "model.safetensors").symlink_to(outside)
    with pytest.raises(WeightsMismatch, match=r"(?s)link.*outside\.safetensors.*link the whole folder"):
        weight_files(part)
    (tmp_path / "linked").symlink_to(part)
    (part / "model.safetensors").unlink()
    outside.rename(part / "model.safetensors")
    assert weight_files(tmp_path / "linked") == [tmp_path / "linked" / "model.safetensors"]

    cache = tmp_path / "models--someone--model"
    snapshot = cache / "snapshots" / "0123" / "unet"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abcd").touch()
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(cache / "blobs" / "abcd", snapshot))
    assert weight_files(snapshot) == [snapshot / "model.safetensors"]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == []
