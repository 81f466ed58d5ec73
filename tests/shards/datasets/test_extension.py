"""A data set is one file and one preset: an image folder is added to a copy of the package, built and verified."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]

DATASET = '''"""Images in one subfolder per class."""

import argparse
import json
from pathlib import Path

from PIL import Image

from diffprobe.core.digest import digest_file
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shards

HELP = "images in one subfolder per class"
CARD = DatasetCard(name="image_folder", licence="that of the images", disjoint_by={"test": "key", "val": "key"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the source."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with a subfolder per class")


def build(images: Path, out: Path) -> ShardSet:
    """Write every tenth image, by its digest, to val and test each, and the others to train."""
    rows: dict[str, list[tuple[str, dict[str, bytes]]]] = {"train": [], "val": [], "test": []}
    for path in sorted(images.glob("*/*.png")):
        split = ["val", "test", *["train"] * 8][int(digest_file(path)[:8], 16) % 10]
        record = {"class_name": path.parent.name, "caption": f"a photo of a {path.parent.name}"}
        members = {"png": path.read_bytes(), "json": json.dumps(record).encode()}
        rows[split].append((f"{path.parent.name}/{path.stem}", members))
    for split, samples in rows.items():
        if samples:
            write_shards(samples, out, split)
    return build_index(out, name=CARD.name, licence=CARD.licence)


def tiny(folder: Path) -> tuple[dict[str, Path], int]:
    """Write 24 images of two classes."""
    for number in range(24):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 9)).save(path)
    return {"images": folder}, 24
'''


def files_below(root: Path) -> dict[str, bytes]:
    folders = [root / "configs", root / "diffprobe"]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and "assets" not in path.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found if "__pycache__" not in p.parts}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package and its presets."""
    root = tmp_path / "copy"
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "assets")
    for folder in ("diffprobe", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    (root / "diffprobe" / "assets").symlink_to(ROOT / "diffprobe" / "assets")
    (root / "tests/shards/datasets").mkdir(parents=True)
    shutil.copy(ROOT / "tests/shards/datasets/test_contract.py", root / "tests/shards/datasets")
    return root


@pytest.mark.slow
def test_an_image_folder_data_set_is_one_file_and_one_preset(package: Path, tmp_path: Path) -> None:
    before = files_below(package)
    (package / "diffprobe/shards/datasets/image_folder.py").write_text(DATASET)
    (package / "configs/data/image_folder.yaml").write_text("path: data/image_folder\nbatch_size: 8\n")
    changed = files_below(package).items() - before.items()
    assert sorted(name for name, _ in changed) == [
        "configs/data/image_folder.yaml", "diffprobe/shards/datasets/image_folder.py",
    ]  # fmt: skip

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package), "DIFFPROBE_CONFIGS": ""}
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=package, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for number in range(40):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (5 * number, 0, 9)).save(path)
    out = package / "data/image_folder"
    assert "image_folder" in run("diffprobe", "data", "build", "--help")
    built = run("diffprobe", "data", "build", "image_folder", "--images", str(tmp_path / "images"), "--out", str(out))
    assert "image_folder: 3 shards" in built and "classes: 2" in built
    assert "40 valid samples, 0 faults" in run("diffprobe", "data", "verify", "data/image_folder")
    assert "path: data/image_folder" in run("diffprobe", "config", "data=image_folder")
    contract = "tests/shards/datasets/test_contract.py"
    tests = run("pytest", "-q", contract, "-k", "image_folder", "-p", "no:cacheprovider")
    assert "2 passed" in tests
