"""`diffprobe data`: index and verify a folder from the command line."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.shards.writer import write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    image = (tmp_path / "image.png").read_bytes()
    samples = [(f"k{i}", {"png": image, "json": json.dumps({"y": i}).encode()}) for i in range(3)]
    write_shard(tmp_path / "train-0000.tar", samples)
    return tmp_path


def test_index_then_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--name", "mine", "--licence", "CC0 1.0", "--field", "label=y"]
    assert main(["data", "index", str(folder), *options]) == 0
    assert "mine: 1 shards" in (out := capsys.readouterr().out)
    assert "train: 3 samples" in out
    assert "classes: 3" in out
    assert main(["data", "verify", str(folder), "--field", "label=y"]) == 0
    assert "verified: 3 valid samples, 0 faults" in capsys.readouterr().out


def test_verify_reports_a_changed_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "elsewhere" / "index.json"
    assert main(["data", "index", str(folder), "--name", "mine", "--licence", "CC0", "--out", str(out)]) == 0
    shard = folder / "train-0000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"y"', b'"z"'))
    assert main(["data", "verify", str(out)]) == 1
    assert "train-0000.tar: the shard has changed" in capsys.readouterr().out


def test_errors_name_the_fault_and_the_fix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(folder)]) == 2
    assert f"fix: diffprobe data index {folder}" in capsys.readouterr().err
    index = ["data", "index", str(folder), "--name", "n", "--licence", "l"]
    assert main([*index, "--field", "lable=y"]) == 2
    assert "unknown field 'lable'.\n  nearest: label" in capsys.readouterr().err
    assert main([*index, "--field", "label"]) == 2
    assert "--field label has no value" in capsys.readouterr().err
    build = ["data", "build", "emoji", "--noto", "none", "--twemoji", "none", "--names", "none", "--out", "out"]
    assert main([part if part not in ("none", "out") else str(folder / part) for part in build]) == 2
    assert "Error" in capsys.readouterr().err


def test_splits_by_pattern(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train-0000.tar").rename(folder / "00000.tar")
    (folder / "image.png").unlink()
    index = ["data", "index", str(folder), "--name", "n", "--licence", "l"]
    assert main([*index, "--split", "val=0000?.tar"]) == 0
    assert "val: 3 samples" in capsys.readouterr().out
    for wrong in (["a", "b"], ["a="], ["=x"], ["a=x", "b=x"]):
        assert main([*index, *(word for text in wrong for word in ("--split", text))]) == 2
        assert "expected NAME for one split" in capsys.readouterr().err


def test_predicted_classes_go_into_the_prompts(
    tiny_clip: Path, tiny_sd: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    command = ["data", "predict", str(tiny_shards), "--model", str(tiny_clip), "--device", "cpu", "--out", str(out)]
    assert main([*command, "--template", "noto {class_name}", "--split", "val", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "6 classes, templates: 'noto {class_name}'" in shown and "val: 4 images, zero-shot accuracy " in shown
    settings = shlex.split(next(line for line in shown.splitlines() if line.startswith("use: ")))[1:]
    assert settings[0] == f"features.columns={out}"
    extract = [
        "extract", f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}",
        "features.taps=[mid_block]", "features.timesteps=[20]", f"features.store={tmp_path / 's'}",
    ]  # fmt: skip
    assert main([*extract, *settings, "data.train_split=val"]) == 0
    assert main([*extract, *settings]) == 2
    assert "the predicted_class of 8 samples; 24 are read" in capsys.readouterr().err
    assert main(command) == 2
    assert f"'{out}' exists" in capsys.readouterr().err
