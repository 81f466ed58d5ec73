"""Hostile indexes and stores: every command that reads them refuses them by name, within bounds."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts import seal
from tests.hostile.harness import Canary, Outcome, assert_ended, attempt_cli, canary

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow

CODES = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\x9b31m\u200b\u2066"
DEEP = 100_000
Damage = Callable[[Path], object]
Tree = dict[str, Any]


def settings(backbone: Path, data: Path, stores: Path) -> list[str]:
    return [
        f"backbone.path={backbone}", "backbone.device=cpu", f"data.path={data}", "features.taps=[mid_block]",
        "features.timesteps=[20,60]", f"features.store={stores}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid store, of features in `stores` and of latents in `latents`, and its data in `set`."""
    root = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_shards, root / "set")
    words = settings(tiny_sd, root / "set", root / "stores")
    made = attempt_cli(["extract", "--quiet", *words, f"features.latent_cache={root / 'latents'}"])
    assert made.status == 0, made.stderr
    return root


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "work")


def train(root: Path, backbone: Path) -> Outcome:
    words = settings(backbone, root / "set", root / "stores")
    more = ["probe.cell=mid_block@t20", "logger=none", "trainer.enable_progress_bar=false", f"output={root / 'runs'}"]
    return attempt_cli(["train", *words, "trainer.max_epochs=1", *more], cwd=root)


# ---- ways to damage a file


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(seed: int) -> Damage:
    """Change one letter or digit outside of the header, which says who wrote a file from what, and has its digest."""

    def damage(path: Path) -> None:
        rng, content = random.Random(seed), bytearray(path.read_bytes())
        start = content.find(b'  "header": {')
        header = range(start, content.find(b"\n  }", start)) if start >= 0 else range(0)
        place = rng.choice([i for i, byte in enumerate(content) if chr(byte).isalnum() and i not in header])
        content[place] ^= 1 << rng.randrange(7)
        path.write_bytes(content)

    return damage


def replace(old: bytes, new: bytes) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return damage


def sealed(change: Callable[[Tree], object]) -> Damage:
    """Change the content, with a digest that fits."""

    def damage(path: Path) -> None:
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(seal(tree)))

    return damage


def put(*keys: str | int, value: Any) -> Damage:
    """Replace the value at some keys, with a digest that fits."""

    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return sealed(change)


def become(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(64 * 2**30)


PLACES: dict[str, Damage] = {
    "fifo": become(os.mkfifo),
    "folder": become(lambda path: path.mkdir()),
    "zeros": become(lambda path: path.symlink_to("/dev/zero")),
    "loop": become(lambda path: path.symlink_to(path)),
    "sparse": become(sparse),
    "gone": become(lambda path: None),
}
BYTES: dict[str, Damage] = {
    "empty": write(b""),
    "brace": write(b"{"),
    "null": write(b"null"),
    "list": write(b"[]"),
    "nul": write(bytes(1000)),
    "lfs": write(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"),
    "deep": write(b"[" * DEEP),
    "deep object": write(b'{"a":' * DEEP),
    "utf16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "infinity": write(b'{"header": Infinity}'),
    "large number": write(b'{"header": ' + b"9" * 100_000 + b"}"),
    "twice": replace(b'"header"', b'"header": {}, "header"'),
    "trailing": lambda path: path.write_bytes(path.read_bytes() + b"{}"),
    "many keys": lambda path: path.write_text(json.dumps({f"k{i}": i for i in range(300_000)})),
    "half": cut(0.5),
    "almost": cut(0.99),
    "header null": sealed(lambda tree: tree["header"].update(kind=None)),
    "header codes": sealed(lambda tree: tree["header"].update(kind=CODES, made_by=CODES)),
    "version": sealed(lambda tree: tree["header"].update(schema_version=10**3000)),
    "version of codes": sealed(lambda tree: tree["header"].update(schema_version=CODES, made_by=CODES)),
}


INDEX: dict[str, Damage] = {
    **PLACES,
    **BYTES,
    **{f"letter {seed}": flip(seed) for seed in range(8)},
    "edited n_samples": replace(b'"n_samples": 6', b'"n_samples": 0'),
    "edited sha256": replace(b'"sha256": "', b'"sha256": "0'),
    "edited class": replace(b'"red round"', b'"red rounds"'),
    "no sample": put("shards", 0, "n_samples", value=0),
    "fewer samples": put("shards", 0, "n_samples", value=1),
    "more samples": put("shards", 0, "n_samples", value=10**9),
    "negative samples": put("shards", 0, "n_samples", value=-1),
    "endless samples": put("shards", 0, "n_samples", value=10**4000),
    "samples as text": put("shards", 0, "n_samples", value="6"),
    "samples true": put("shards", 0, "n_samples", value=True),
    "other checksum": put("shards", 0, "sha256", value="0" * 64),
    "checksum of codes": put("shards", 0, "sha256", value=CODES),
    "checksum a number": put("shards", 0, "sha256", value=1),
    "other size": put("shards", 0, "n_bytes", value=1),
    "outside": put("shards", 0, "file", value="../../secret.tar"),
    "absolute": put("shards", 0, "file", value="/etc/passwd"),
    "backslash": put("shards", 0, "file", value="..\\..\\secret.tar"),
    "device": put("shards", 0, "file", value="/dev/zero"),
    "empty name": put("shards", 0, "file", value=""),
    "dot": put("shards", 0, "file", value="."),
    "nul in a name": put("shards", 0, "file", value="a\0b"),
    "long name": put("shards", 0, "file", value="x" * 5000),
    "surrogate": replace(b'"file": "test-0000.tar"', b'"file": "\\ud800"'),
    "file of codes": put("shards", 0, "file", value=CODES),
    "split a list": put("shards", 0, "split", value=["train"]),
    "root a list": put("root", value=["x"]),
    "root elsewhere": put("root", value="/nonexistent"),
    "root of codes": put("root", value=CODES),
    "root nul": put("root", value="a\0"),
    "shards an object": put("shards", value={}),
    "no shards": put("shards", value=[]),
    "shards of texts": put("shards", value=["x"]),
    "shard twice": sealed(lambda tree: tree["shards"].append(tree["shards"][0])),
    "unknown key": put("shards", 0, CODES, value=1),
    "missing key": sealed(lambda tree: tree["shards"][0].pop("sha256")),
    "classes a text": put("classes", value="abc"),
    "classes of numbers": put("classes", value=[1, 2]),
    "class twice": put("classes", value=["a", "a"]),
    "no class": put("classes", value=[]),
    "other classes": put("classes", value=["a", "b", "c", "d", "e", "f"]),
    "attributes a list": put("attributes", value=[]),
    "attribute a text": put("attributes", "style", value="abc"),
    "attribute label": put("attributes", value={"label": ["a"]}),
    "fewer values": put("attributes", "style", value=["noto"]),
    "fields": put("fields", value={"image": 3}),
    "fields unknown": put("fields", value={CODES: CODES}),
    "renamed": put("renamed", value={"style": ["x"]}),
    "renamed a list": put("renamed", value=["x"]),
    "faults": put("faults", value=[1]),
    "licence": put("licence", value=None),
    "missing": put("shards", 0, "missing", value={"caption": [1]}),
    "missing of texts": put("shards", 0, "missing", value={"caption": ["a", "b", "c"]}),
    "missing a list": put("shards", 0, "missing", value=["caption"]),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEX)
def test_a_hostile_index_is_refused_by_every_command(name: str, folder: Path, tiny_sd: Path, canary: Canary) -> None:
    """A seal does not make an index true: what it says about shards is compared with them when they are read."""
    INDEX[name](folder / "set/index.json")
    verify = attempt_cli(["data", "verify", str(folder / "set")], cwd=folder)
    assert_ended(verify, statuses=(1, 2))
    assert str(folder / "set") in verify.stdout + verify.stderr
    shutil.rmtree(folder / "stores")
    words = settings(tiny_sd, folder / "set", folder / "stores")
    assert_ended(attempt_cli(["extract", "--quiet", *words], cwd=folder))
    assert not list(folder.glob("stores/*/test-0000.tar"))  # the first shard of the index, which is damaged


@pytest.mark.parametrize("keys", [("name",), ("licence",), ("shards", 0, "split")], ids=str)
def test_a_text_of_an_index_is_printed_as_text(keys: tuple[str, ...], folder: Path) -> None:
    put(*keys, value=CODES)(folder / "set/index.json")
    outcome = attempt_cli(["data", "verify", str(folder / "set")], cwd=folder)
    assert_ended(outcome, statuses=(0,))
    assert "\\x1b[2J" in outcome.stdout


def of_store(kind: str, root: Path) -> Path:
    (found,) = (root / ("stores" if kind == "features" else "latents")).iterdir()
    return found


SHARD = "train-0000.tar"
FIRST, SECOND = "mid_block@t20.empty.mean.safetensors", "mid_block@t60.empty.mean.safetensors"
CELL = "mid_block@t20:empty:mean"


def swap(path: Path) -> None:
    """Exchange two cell files of a shard."""
    other = path.with_name(SECOND)
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def from_other_shard(path: Path) -> None:
    shutil.copy(path.parents[1] / "train-0001.tar" / path.name, path)


def linked_outside(path: Path) -> None:
    target = path.parents[3] / "elsewhere"
    target.write_bytes(b"secret")
    path.unlink()
    path.symlink_to(target)


MANIFEST: dict[str, Damage] = {
    **PLACES,
    **BYTES,
    **{f"letter {seed}": flip(seed) for seed in range(8)},
    "other digest": put("digest", value="0" * 64),
    "cells a list": put("cells", value=[CELL]),
    "width a text": put("cells", value={CELL: "8"}),
    "width zero": put("cells", value={CELL: 0}),
    "width endless": put("cells", value={CELL: 10**4000}),
    "cell outside": put("cells", value={"../../x@t1:empty:mean": 8}),
    "cell of codes": put("cells", value={f"{CODES}@t1:empty:mean": 8}),
    "cell of nothing": put("cells", value={"": 8}),
    "shards an object": put("shards", value={}),
    "shard outside": put("shards", 0, "file", value="../../etc"),
    "shard number": put("shards", 0, "n", value="6"),
    "fewer rows": put("shards", 0, "n", value=1),
    "backbone a list": put("backbone", value=[]),
    "recorded": put("recorded", value=None),
    "recorded classes": put("recorded", "classes", value="abc"),
    "recorded attributes": put("recorded", "attributes", value={"label": ["a"]}),
    "recorded of codes": put("recorded", value={CODES: CODES}),
    "dtype": put("dtype", value=[]),
    "data": put("data", value={}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["features", "latents"])
@pytest.mark.parametrize("name", MANIFEST)
def test_a_hostile_manifest_is_refused_by_every_command(name: str, kind: str, folder: Path, tiny_sd: Path) -> None:
    store = of_store(kind, folder)
    MANIFEST[name](store / "manifest.json")
    assert_ended(attempt_cli(["store", "verify", str(store)]), "manifest.json", statuses=(1, 2))
    assert_ended(attempt_cli(["store", "show", str(store)]), "manifest.json")
    assert_ended(attempt_cli(["store", "list", str(store.parent)]), store.name, statuses=(0, 1))
    if kind == "features":
        outcome = train(folder, tiny_sd)
        assert_ended(outcome)
        assert store.name in outcome.stderr or "there is no feature store" in outcome.stderr


@pytest.mark.parametrize("name", ["codes in what is not digested", "numbers in what is not digested"])
def test_what_no_digest_of_the_store_covers_is_printed_as_text_or_refused(name: str, folder: Path) -> None:
    store = of_store("features", folder)
    value: Any = CODES if name.startswith("codes") else 10**3000

    def change(tree: Tree) -> None:
        for key in ("backbone", "data", "licence", "commit", "revision"):
            tree["recorded"][key] = value
        tree["recorded"]["versions"] = {CODES: value}
        tree["recorded"]["taps"] = {CODES: value}
        tree["recorded"]["timesteps"] = value
        tree["recorded"]["snr"] = value

    sealed(change)(store / "manifest.json")
    for command in ("show", "verify"):
        assert_ended(attempt_cli(["store", command, str(store)]), statuses=(0, 1, 2))
    assert_ended(attempt_cli(["store", "list", str(store.parent)]), statuses=(0, 1))


SAMPLES: dict[str, Damage] = {
    **PLACES,
    **BYTES,
    **{f"letter {seed}": flip(seed) for seed in range(8)},
    "other store": put("store", value="0" * 64),
    "other shard": put("shard", value="train-0001.tar"),
    "keys a text": put("keys", value="abcdef"),
    "keys fewer": put("keys", value=["a"]),
    "key twice": put("keys", value=["a"] * 6),
    "keys of numbers": put("keys", value=[1, 2, 3, 4, 5, 6]),
    "label text": put("label", value=["0"] * 6),
    "label too large": put("label", value=[10**9] * 6),
    "label endless": put("label", value=[10**400] * 6),
    "label below": put("label", value=[-2] * 6),
    "label fewer": put("label", value=[0]),
    "label fraction": put("label", value=[0.5] * 6),
    "captions": put("captions", value=[None] * 6),
    "attribute unknown": put("attributes", CODES, value=[0] * 6),
    "attribute too large": put("attributes", "style", value=[9] * 6),
    "left out": put("left_out", value=[1]),
    "left out of codes": put("left_out", value=[{"key": CODES, "message": CODES}]),
    "cell outside": put("cells", CELL, "file", value="../../../secret.safetensors"),
    "cell absolute": put("cells", CELL, "file", value="/etc/passwd"),
    "cell file of another": put("cells", CELL, "file", value=SECOND),
    "cell checksum": put("cells", CELL, "sha256", value="0" * 64),
    "cell checksum number": put("cells", CELL, "sha256", value=0),
    "cell shape": put("cells", CELL, "shape", value=[10**9, 8]),
    "cell a list": put("cells", CELL, value=[]),
    "no cells": put("cells", value={}),
}  # fmt: skip
CELLS: dict[str, Damage] = {
    **PLACES,
    "empty": write(b""),
    "short": write(b"\x08\0\0\0"),
    "header of 8 GB": write((2**33).to_bytes(8, "little") + b"{}"),
    "header deep": write(DEEP.to_bytes(8, "little") + b"[" * DEEP),
    "zip": write(b"PK\x03\x04" + bytes(500)),
    "lfs": write(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"),
    "half": cut(0.5),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "swapped": swap,
    "of another shard": from_other_shard,
    "link outside": linked_outside,
    **{f"bit {seed}": flip(seed) for seed in range(6)},
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_hostile_samples_of_a_store_are_refused(name: str, folder: Path, tiny_sd: Path) -> None:
    refused(SAMPLES[name], folder, "samples.json", tiny_sd)


@pytest.mark.parametrize("name", CELLS)
def test_hostile_files_of_cells_are_refused(name: str, folder: Path, tiny_sd: Path, canary: Canary) -> None:
    (folder / "payload").write_bytes(canary.torch_file())
    refused(CELLS[name], folder, FIRST, tiny_sd)


@pytest.mark.parametrize("payload", ["pickle", "torch"])
def test_a_pickle_in_a_store_is_not_loaded(payload: str, folder: Path, tiny_sd: Path, canary: Canary) -> None:
    content = canary.pickle() if payload == "pickle" else canary.torch_file()
    for file in ("samples.json", FIRST):
        refused(write(content), folder, file, tiny_sd)


def refused(damage: Damage, folder: Path, file: str, backbone: Path) -> None:
    """Damage a file of a store; `store verify` and training have to name it."""
    store = of_store("features", folder)
    damage(store / SHARD / file)
    assert_ended(attempt_cli(["store", "verify", str(store)]), SHARD, statuses=(1,))
    assert_ended(attempt_cli(["store", "show", str(store)]), statuses=(0,))
    outcome = train(folder, backbone)
    assert_ended(outcome, SHARD)
    assert not list(folder.rglob("result.json"))


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/dev/zero", "/etc/passwd", "a\nb", CODES, "x" * 5000, "nul\0"],
    ids=lambda text: ascii(text)[:20],
)
@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_a_path_of_any_text_is_refused(command: str, path: str, tmp_path: Path) -> None:
    assert_ended(attempt_cli(["store", command, "--", path], cwd=tmp_path), statuses=(0, 2))
