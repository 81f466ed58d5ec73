import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.capture import cut
from diffprobe.backbones.weights import digest_files, digest_part, load_tensors, locate, require_files, weight_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing

STEM = "diffusion_pytorch_model"


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may damage."""
    return shutil.copytree(tiny_sd, tmp_path / "sd")


def make_unet(folder: Path) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))


def read(folder: Path, **settings: object) -> torch.nn.Module:
    unet = make_unet(folder)
    names = frozenset(unet.state_dict())
    load_tensors(unet, folder / "unet", **{"dtype": torch.float32, "expected": names, **settings})  # type: ignore[arg-type]
    return unet


class TestLocate:
    def test_a_folder_is_taken_as_it_is(self, tiny_sd: Path) -> None:
        found = locate(str(tiny_sd))
        assert found.folder == tiny_sd and found.index["_class_name"] == "StableDiffusionPipeline"

    def test_a_hub_id_offline_says_how_to_go_on(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

        def no_network(*args: object) -> None:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr("socket.socket.connect", no_network)
        with pytest.raises(WeightsMissing) as caught:
            locate("nobody/no-such-model-0", revision="v1")
        message = str(caught.value)
        assert "'nobody/no-such-model-0' at v1 is not on this machine" in message and "offline mode is on" in message
        assert "backbone.path=FOLDER" in message and "hf download nobody/no-such-model-0" in message

    def test_a_hub_id_in_the_cache_needs_no_network(self, monkeypatch: pytest.MonkeyPatch, tiny_sd: Path) -> None:
        from huggingface_hub import constants

        repo = Path(constants.HF_HUB_CACHE) / "models--diffprobe-tests--tiny"
        cache = tiny_sd.parent / "hub"
        snapshot = cache / repo.name / "snapshots" / ("0" * 40)
        shutil.copytree(tiny_sd, snapshot)
        (cache / repo.name / "refs").mkdir()
        (cache / repo.name / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        found = locate("diffprobe-tests/tiny")
        assert found.folder is not None and found.folder.samefile(snapshot)

    @pytest.mark.parametrize("path", ["no/such/folder", "./nothing", "nothing"])
    def test_what_is_neither_folder_nor_hub_id_is_refused(self, path: str) -> None:
        with pytest.raises(WeightsMissing, match="not a hub id"):
            locate(path)

    def test_a_folder_without_an_index_says_what_it_has(self, tmp_path: Path) -> None:
        (tmp_path / "model.ckpt").touch()
        with pytest.raises(WeightsMissing, match=r"it has: model\.ckpt"):
            locate(str(tmp_path))


class TestFiles:
    def test_all_parts_that_lack_weights_are_named_at_once(self, folder: Path) -> None:
        (folder / "unet" / f"{STEM}.safetensors").unlink()
        (folder / "vae" / "config.json").unlink()
        with pytest.raises(WeightsMissing, match=r"missing: unet, vae \(2 of 3 parts\)"):
            require_files(folder / "unet", folder / "vae", folder / "text_encoder")

    def test_pickles_are_never_read(self, folder: Path) -> None:
        (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / f"{STEM}.bin")
        with pytest.raises(WeightsMissing, match="pickles and never read"):
            require_files(folder / "unet")

    def test_a_single_variant_stands_in_for_the_plain_file(self, folder: Path) -> None:
        plain = folder / "unet" / f"{STEM}.safetensors"
        variant = plain.rename(plain.with_name(f"{STEM}.fp16.safetensors"))
        assert weight_files(folder / "unet") == [variant]
        shutil.copy(variant, variant.with_name(f"{STEM}.non_ema.safetensors"))
        assert weight_files(folder / "unet") == []  # two of them: nothing is guessed

    def test_sharded_weights_are_read_whole_or_not_at_all(self, folder: Path) -> None:
        unet = folder / "unet"
        tensors = load_file(unet / f"{STEM}.safetensors")
        (unet / f"{STEM}.safetensors").unlink()
        names = sorted(tensors)
        halves = {f"{STEM}-00001-of-00002.safetensors": names[:50], f"{STEM}-00002-of-00002.safetensors": names[50:]}
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, unet / file)
        index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
        (unet / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
        assert torch.equal(read(folder).state_dict()[names[60]], tensors[names[60]])
        (unet / f"{STEM}-00002-of-00002.safetensors").unlink()
        assert weight_files(unet) == []


class TestLoad:
    def test_weights_stored_as_fp16_load_as_fp32(self, folder: Path) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        stored = {name: value.half() for name, value in load_file(path).items()}
        save_file(stored, path)
        for name, value in read(folder).state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, stored[name].float())

    def test_a_cut_network_reads_only_its_own_weights(self, tiny_sd: Path) -> None:
        unet = make_unet(tiny_sd)
        names = frozenset(unet.state_dict())
        cut(unet, {"conv_in"})
        load_tensors(unet, tiny_sd / "unet", dtype=torch.float32, expected=names)
        assert set(unet.state_dict()) == {"conv_in.weight", "conv_in.bias"}
        stored = load_file(tiny_sd / "unet" / f"{STEM}.safetensors")
        assert torch.equal(unet.conv_in.weight, stored["conv_in.weight"])

    def test_attention_weights_of_old_checkpoints_are_understood(self, folder: Path) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        stem = "mid_block.attentions.0.transformer_blocks.0.attn1"
        stored = load_file(path)
        old = {f"{stem}.query.weight": stored.pop(f"{stem}.to_q.weight")}
        old |= {f"{stem}.proj_attn.bias": stored.pop(f"{stem}.to_out.0.bias")}
        save_file(stored | old, path)
        loaded = read(folder).state_dict()
        assert torch.equal(loaded[f"{stem}.to_q.weight"], old[f"{stem}.query.weight"])

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda t: t.pop("conv_in.weight"), "missing 1: conv_in.weight"),
            (lambda t: t.update(foreign=torch.zeros(1)), "of another network 1: foreign"),
            (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), r"conv_in\.bias: stored \(3,\), config \(16,\)"),
        ],
    )
    def test_weights_that_do_not_fit_are_refused(
        self, folder: Path, damage: Callable[[dict], None], message: str
    ) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        tensors = load_file(path)
        damage(tensors)
        save_file(tensors, path)
        with pytest.raises(WeightsMismatch, match=message):
            read(folder)

    def test_a_truncated_file_is_named(self, folder: Path) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(WeightsMismatch, match="not a readable safetensors file"):
            read(folder)


class TestDigest:
    def test_it_is_one_of_content_and_not_of_place_or_writer(self, tiny_sd: Path, folder: Path) -> None:
        before = digest_part(tiny_sd / "unet")
        config = json.loads((folder / "unet" / "config.json").read_text())
        config |= {"_diffusers_version": "0.1", "_name_or_path": "elsewhere"}
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        assert digest_part(folder / "unet") == before
        (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 99}))
        assert digest_part(folder / "unet") != before

    def test_a_changed_file_changes_it_within_one_process(self, folder: Path) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        before, without = digest_part(folder / "unet"), digest_part(folder / "unet", weights=False)
        tensors = load_file(path)
        tensors["conv_in.bias"] += 1
        save_file(tensors, path)
        os.utime(path, ns=(1, 1))
        assert digest_part(folder / "unet") != before
        assert digest_part(folder / "unet", weights=False) == without

    def test_small_files_count_by_name_and_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        (tmp_path / "b").write_text("x")
        one, other, none = (digest_files([tmp_path / name]) for name in "abc")
        assert len({one, other, none}) == 3
        assert digest_files([tmp_path / "a", tmp_path / "c"]) == one
