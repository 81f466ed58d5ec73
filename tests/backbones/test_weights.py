import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.hooks import prune_after
from diffprobe.backbones.locate import locate
from diffprobe.backbones.weights import (
    denoiser_source,
    digest_denoiser,
    digest_files,
    digest_part,
    load_tensors,
    precision_of,
    require_files,
    weight_files,
)
from diffprobe.core.errors import RunFailed, WeightsMismatch, WeightsMissing

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


class TestFiles:
    def test_all_parts_that_lack_weights_are_named_at_once(self, folder: Path) -> None:
        (folder / "unet" / f"{STEM}.safetensors").unlink()
        (folder / "vae" / "config.json").unlink()
        with pytest.raises(WeightsMissing, match=r"missing: unet, vae \(2 of 3 parts\)"):
            require_files(folder / "unet", folder / "vae", folder / "text_encoder")

    def test_pickles_are_never_read(self, folder: Path) -> None:
        (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / f"{STEM}.bin")
        with pytest.raises(WeightsMissing, match="pickles"):
            require_files(folder / "unet")

    def test_a_single_variant_replaces_the_plain_file(self, folder: Path) -> None:
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
        prune_after(unet, {"conv_in"})
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

    def test_nothing_is_read_before_the_shapes_fit(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        tensors = load_file(path)
        save_file({**tensors, "conv_in.bias": torch.zeros(3)}, path)
        monkeypatch.setattr("diffprobe.backbones.weights._read", lambda *args: pytest.fail("a tensor was read"))
        with pytest.raises(WeightsMismatch, match="conv_in"):
            read(folder)

    def test_weights_that_do_not_fit_into_memory_are_not_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("diffprobe.backbones.network_size.free_memory", lambda: 1000)
        with pytest.raises(RunFailed, match="unet.*GB of memory"):
            read(folder)

    def test_quantised_weights_are_refused(self, folder: Path) -> None:
        path = folder / "unet" / f"{STEM}.safetensors"
        tensors = load_file(path)
        save_file({name: value.to(torch.int8) for name, value in tensors.items()}, path)
        with pytest.raises(WeightsMismatch, match=r"(?s)stored as torch\.int8.*quantised"):
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


class TestReplacedWeights:
    """Weights from elsewhere in place of the denoiser's own: a file, or a part's folder with its own config."""

    def test_a_file_goes_with_the_checkpoints_config(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "other.safetensors"
        tensors = load_file(folder / "unet" / f"{STEM}.safetensors")
        save_file({name: value + 1 for name, value in tensors.items()}, file)
        checkpoint = locate(str(folder), denoiser_weights=str(file))
        assert denoiser_source(checkpoint, "unet") == (folder / "unet", file)
        unet = make_unet(folder)
        load_tensors(unet, file, dtype=torch.float32, expected=frozenset(unet.state_dict()))
        assert torch.equal(unet.state_dict()["conv_in.bias"], tensors["conv_in.bias"] + 1)

    def test_a_folder_brings_its_own_config(self, folder: Path, tmp_path: Path) -> None:
        other = shutil.copytree(folder / "unet", tmp_path / "other")
        checkpoint = locate(str(folder), denoiser_weights=str(other))
        assert denoiser_source(checkpoint, "unet") == (other, other)
        assert digest_denoiser(checkpoint, "unet") == digest_part(folder / "unet")  # the same content elsewhere
        (other / "config.json").unlink()
        with pytest.raises(WeightsMissing, match="missing: other"):
            require_files(other)

    def test_the_digest_is_one_of_content_and_not_of_the_files_name(self, folder: Path, tmp_path: Path) -> None:
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        tensors = load_file(folder / "unet" / f"{STEM}.safetensors")
        save_file({name: value + 1 for name, value in tensors.items()}, first)
        shutil.copy(first, second)
        own, a, b = (
            digest_denoiser(locate(str(folder), denoiser_weights=None if path is None else str(path)), "unet")
            for path in (None, first, second)
        )
        assert a == b != own

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("model.ckpt", "pickles are never read"),
            ("nowhere.safetensors", r"not OWNER/NAME:FILE\.safetensors"),
            ("OWNER/NAME@:model.safetensors", r"not OWNER/NAME:FILE\.safetensors"),
            ("OWNER/NAME:model.bin", r"not OWNER/NAME:FILE\.safetensors"),
        ],
    )
    def test_what_is_no_safetensors_file_is_refused(
        self, name: str, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.ckpt").touch()
        with pytest.raises(WeightsMissing, match=message):
            locate(str(folder), denoiser_weights=name)

    def test_weights_of_another_network_are_refused(self, folder: Path, tmp_path: Path) -> None:
        save_file({"foreign": torch.zeros(1)}, tmp_path / "other.safetensors")
        unet = make_unet(folder)
        with pytest.raises(WeightsMismatch, match=r"other\.safetensors' do not fit the config\.json"):
            load_tensors(
                unet, tmp_path / "other.safetensors", dtype=torch.float32, expected=frozenset(unet.state_dict())
            )


def test_tensors_with_a_kept_name_in_their_path_stay_in_float32() -> None:
    kept = ("modulation", "scale_shift_table")
    assert precision_of("blocks.0.modulation.weight", torch.bfloat16, kept) == torch.float32
    assert precision_of("blocks.0.scale_shift_table", torch.float16, kept) == torch.float32
    assert precision_of("blocks.0.text_modulation.weight", torch.bfloat16, kept) == torch.bfloat16
