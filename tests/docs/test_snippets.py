"""Every Python snippet of README and docs runs, on the shipped model with few images, or at least names what exists.

The snippets of the notebooks are executed by `test_notebooks.py`; those of the guide, with its commands, here.
"""

import ast
import contextlib
import io
import json
import os
import shlex
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from diffprobe.cli.main import main
from tests.docs.markdown import ROOT, Block, blocks, pages
from tests.docs.test_commands import guide_files

LIMIT = 48
SETTINGS = [
    "experiment=emoji/classifier",
    f"data.limit={LIMIT}",
    "features.timesteps=[200]",
    "features.taps=[mid_block]",
]
SNIPPETS = [block for path in pages() for block in blocks(path) if block.language == "python"]
GUIDE = ROOT / "docs/users/guide.md"
RECORDED = ROOT / "docs" / "results" / "demo"


def imports(code: str) -> list[tuple[str, str]]:
    """Return (module, name) of every name that a snippet imports from diffprobe."""
    return [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_a_snippet_compiles_and_its_imports_exist(block: Block) -> None:
    compile(block.code, str(block), "exec")
    for module, name in imports(block.code):
        assert hasattr(import_module(module), name)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(*words: str) -> str:
    """Run a command in this process and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(list(words)) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the snippets take as given: a folder of a store, images, features, a saved autoencoder."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("snippets")
    with working_in(folder):
        store = folder / run("extract", *SETTINGS, "--quiet").split()[-1]
    return {"cwd": folder, "folder": store, "images": [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]}


def saved_sae(folder: Path, d_in: int) -> Path:
    from diffprobe.probes.sae import topk

    path: Path = topk.make(topk.Config(k=4, n_latents=16), d_in, seed=0).save_pretrained(folder / "sae")
    return path


def execute(code: str, workplace: dict[str, Any], **names: Any) -> dict[str, Any]:
    """Run a snippet in the working folder of the fixture."""
    namespace = {**workplace, **names}
    with working_in(workplace["cwd"]), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "snippet", "exec"), namespace)
    return namespace


def find(page: str, word: str) -> str:
    """Return the one snippet of a page in which a word stands."""
    found = [block.code for block in SNIPPETS if block.page == page and word in block.code]
    assert len(found) == 1
    return found[0]


def test_the_readmes_first_snippet_reads_features(workplace: dict[str, Any]) -> None:
    out = execute(find("README.md", "DiffusionFeatures"), workplace)["out"]
    assert len(out) == 8 and out["mid_block@t200:empty:mean"].shape[0] == 2


def test_the_readmes_second_snippet_fits_a_probe(workplace: dict[str, Any]) -> None:
    names = execute(find("README.md", "LinearProbe"), workplace)
    assert len(names["x"]) == LIMIT and 0 <= float(names["probe"].score(names["x"], names["y"])) <= 1


def test_the_snippet_of_the_store_returns_cells_features_and_classes(workplace: dict[str, Any]) -> None:
    names = execute(find("docs/users/features.md", "FeatureStore"), workplace)
    assert names["store"].cells == ("mid_block@t200:empty:mean",) and len(names["store"].classes("group")) == 8


def test_the_snippets_of_probes(workplace: dict[str, Any], tmp_path: Path) -> None:
    names = execute(find("docs/users/features.md", "FeatureStore"), workplace)
    x, y = names["x"], names["y"]
    names = execute(find("docs/users/probes.md", "LinearProbe"), workplace, x=x, y=y)
    assert len(names["probe"].predict(x)) == len(x)
    names = execute(find("docs/users/probes.md", "KSAE"), workplace, x=x, folder=saved_sae(tmp_path, x.shape[1]))
    assert names["x_hat"].shape == x.shape and names["code"].values.shape == (len(x), 4)


def test_the_snippet_of_a_run_trains(workplace: dict[str, Any]) -> None:
    code = find("docs/users/probes.md", "load_experiment")
    given = '["trainer.max_epochs=3"]'
    assert given in code
    settings = [*SETTINGS[1:], "trainer.max_epochs=3", "trainer.enable_progress_bar=false"]
    path = execute(code.replace(given, json.dumps(settings)), workplace)["path"]
    assert json.loads((workplace["cwd"] / path).read_text())["config"]["trainer"]["max_epochs"] == 3


def test_the_snippet_of_a_table_prints_one(workplace: dict[str, Any]) -> None:
    code = find("docs/users/guide.md", "build_table")
    code = code.replace('"pets"', '"emoji"').replace('"runs"', repr(str(RECORDED)))
    assert "RECORDED" not in code and str(RECORDED) in code
    execute(code, workplace)


@pytest.mark.slow
def test_the_guide_from_a_folder_of_images_to_a_table(tmp_path: Path) -> None:
    """All commands of the guide in order, on the shipped model in place of Stable Diffusion."""
    emoji = ROOT / "diffprobe" / "assets" / "emoji"
    for split in ("train", "val", "test"):
        with tarfile.open(next(emoji.glob(f"{split}-*.tar.gz"))) as tar:
            pictures = [member for member in tar if member.name.endswith(".webp")][:40]
            for i, member in enumerate(pictures):
                place = tmp_path / "images" / split / ("cat" if i % 2 else "dog") / f"{i:03d}.webp"
                place.parent.mkdir(parents=True, exist_ok=True)
                data = tar.extractfile(member)
                assert data is not None
                place.write_bytes(data.read())
    for name, content in guide_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = content.replace("/backbone: sd15", "/backbone: emoji-sd").replace("/features: sd", "/features: emoji")
        (tmp_path / name).write_text(text)
    printed = []
    with working_in(tmp_path):
        for block in blocks(GUIDE):
            if block.language == "" and block.code.startswith("diffprobe "):
                words = shlex.split(block.code, comments=True)[1:]
                words = [word.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", "emoji-sd") for word in words]
                words = [word.replace("mid_block@t100", "mid_block@t200") for word in words]
                words = ["64" if word == "512" else word for word in words]
                small = (
                    ["data.batch_size=16", "data.num_workers=0", "trainer.max_epochs=2"] if words[0] == "train" else []
                )
                printed.append(run(*words, *small))
    tables = [text for text in printed if "raw pixels" in text]
    assert len(tables) == 5 and all("n/a" not in table for table in tables)
