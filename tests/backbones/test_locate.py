import shutil
from pathlib import Path

import pytest

from diffprobe.backbones.locate import locate
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may damage."""
    return shutil.copytree(tiny_sd, tmp_path / "sd")


def test_a_folder_is_taken_as_it_is(tiny_sd: Path) -> None:
    found = locate(str(tiny_sd))
    assert found.folder == tiny_sd and found.index["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize("path", ["folder", "emoji-sd", "pixels"])
def test_a_revision_of_what_has_none_is_refused(path: str, tiny_sd: Path) -> None:
    with pytest.raises(ConfigError, match="revision=v1.* hub id"):
        locate(str(tiny_sd) if path == "folder" else path, revision="v1")


@pytest.mark.parametrize("path", ["no/such/folder", "./nothing", "nothing"])
def test_what_is_neither_folder_nor_hub_id_is_refused(path: str) -> None:
    with pytest.raises(WeightsMissing, match="not a hub id"):
        locate(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.ckpt", r"is a file.*pickles, which are never read.*from_single_file\(\"{path}\"\)"),
        ("notes.txt", "is a file"),
    ],
)
def test_a_single_file_is_named_as_one(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(WeightsMissing, match=f"(?s){name}.*{message.format(path=tmp_path / name)}"):
        locate(str(tmp_path / name))


@pytest.mark.parametrize("path", ["models/sd15.safetensors", "sd15.CKPT", "/no/where.bin"])
def test_a_file_that_is_not_there_is_no_hub_id(path: str) -> None:
    with pytest.raises(WeightsMissing, match=f"no file '{path}'"):
        locate(path)


@pytest.mark.parametrize("path", ["", " ", "a" * 300, "\0"])
def test_names_that_no_folder_can_have_are_refused(path: str) -> None:
    with pytest.raises(WeightsMissing):
        locate(path)


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": ["pipeline", "Mine"]}')
    with pytest.raises(WeightsMismatch, match="model_index.json"):
        locate(str(tmp_path))


def test_a_folder_without_an_index_lists_its_content(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(WeightsMissing, match=r"it has: model\.ckpt"):
        locate(str(tmp_path))
