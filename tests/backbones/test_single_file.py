import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffprobe.backbones.check import check_backbone
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd_unet, sdxl
from diffprobe.backbones.locate import locate
from diffprobe.backbones.single_file import convert, kind_of
from diffprobe.backbones.taps import backbone_info
from diffprobe.core.cache_folder import cache_root
from diffprobe.core.claim import _machine
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from tests.backbones.original_names import write_single_file

pytestmark = pytest.mark.slow

KEYS = ["a", "b", "c", "d", "e"]
KINDS = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFPROBE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    sd = sd_unet.tiny(root / "sd")
    return {"sd1": sd, "sd2": sd, "sdxl": sdxl.tiny(root / "sdxl")}


@pytest.fixture
def configs(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The configurations and tokenizer of the tiny model, without its weights."""
    return Path(shutil.copytree(folders["sd1"], tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def file(folders: dict[str, Path], tmp_path: Path) -> Path:
    return write_single_file(folders["sd1"], tmp_path / "model.safetensors", kind="sd1")


@pytest.mark.parametrize("kind", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_features_are_those_of_the_folder_bit_for_bit(
    kind: str, folders: dict[str, Path], images: Tensor, tmp_path: Path
) -> None:
    path = write_single_file(folders[kind], tmp_path / "model.safetensors", kind=kind)
    assert kind_of(path) == KINDS[kind]
    settings = {"taps": ["mid_block"], "timesteps": [100], "condition": "caption", "device": "cpu"}
    single = DiffusionFeatures.from_pretrained(path, single_file_config=str(folders[kind]), **settings)
    captions = ["red cat", "", "blue dog", "a", "b"]
    found = single(images, keys=KEYS, captions=captions)
    for name, values in DiffusionFeatures.from_pretrained(folders[kind], **settings)(
        images, keys=KEYS, captions=captions
    ).items():
        assert torch.equal(values, found[name])


def test_the_conversion_is_made_once_and_again_for_another_file(file: Path, configs: Path) -> None:
    first = locate(str(file), single_file_config=str(configs)).folder
    assert first is not None and cache_root() in first.parents
    written = (first / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    again = locate(str(file), single_file_config=str(configs)).folder
    assert again == first and (first / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    save_file({name: x * 2 for name, x in load_file(file).items()}, file)
    other = locate(str(file), single_file_config=str(configs)).folder
    assert other != first and not list(cache_root().rglob(".partial-*"))


def test_the_rest_of_a_killed_conversion_is_removed_by_the_next(file: Path, configs: Path) -> None:
    root = cache_root() / "single_files"
    root.mkdir(parents=True)
    rest = root / ".partial-0123456789abcdef"
    rest.mkdir()
    (root / f"{rest.name}.lock").write_text(_machine())
    folder = convert(file, configs)
    assert [path.name for path in root.iterdir()] == [folder.name]


def test_taps_need_no_conversion_and_the_check_reports_its_parts(file: Path, configs: Path) -> None:
    found = backbone_info(str(file), single_file_config=str(configs))
    assert any(tap.path == "mid_block" for tap in found.taps)
    assert not cache_root().exists()
    report = check_backbone(str(file), single_file_config=str(configs))
    assert not report.faults and {part.name for part in report.parts} >= {"unet", "vae", "text_encoder", "tokenizer"}


def test_a_file_alone_names_the_setting_and_a_model_with_its_configurations(file: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"(?s)Stable Diffusion 1\.x.*v1-5.*single_file_config=FOLDER"):
        locate(str(file))


def test_another_safetensors_file_is_not_one(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsMissing, match="its tensors have other names"):
        locate(str(tmp_path / "a.safetensors"))


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path, configs: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(WeightsMissing, match=r"(?s)pickles.*from_single_file"):
        locate(str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("model.diffusion_model.out.2.bias", None, "configuration takes|conv_out.bias"),
        ("model.diffusion_model.input_blocks.9.0.in_layers.0.weight", torch.zeros(4), "numbers in tensors like"),
        ("first_stage_model.encoder.conv_in.weight", torch.zeros(16, 3, 5, 5), "of another shape|numbers in tensors"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", None, "missing"),
        ("something.else", torch.zeros(1), "tensors of an unknown purpose, 1: something.else"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_kept(
    name: str, changed: Tensor | None, message: str, file: Path, configs: Path
) -> None:
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if changed is None else {**tensors, name: changed}, file)
    with pytest.raises(WeightsMismatch, match=rf"(?s)does not fit the configurations.*({message})"):
        locate(str(file), single_file_config=str(configs))
    assert not list(cache_root().glob("single_files/*"))


def test_settings_that_do_not_belong_together_are_refused(folders: dict[str, Path], file: Path) -> None:
    with pytest.raises(ConfigError, match="single_file_config"):
        locate(str(folders["sd1"]), single_file_config=str(folders["sd1"]))
    with pytest.raises(ConfigError, match="revision"):
        locate(str(file), single_file_config=str(folders["sd1"]), revision="main")
    with pytest.raises(WeightsMissing, match="is a file"):
        locate(str(file), single_file_config=str(file))
    with pytest.raises(WeightsMissing, match="has no configurations"):
        locate(str(file), single_file_config="pixels")
