"""Hostile shards, indexes and stores: refused in one line or read, in bounded memory, and nothing is executed."""

import gzip
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffprobe.core.artifact import write_artifact
from diffprobe.core.digest import digest_json
from tests.hostile.harness import Canary, Outcome, attempt, attempt_cli, canary  # noqa: F401

pytestmark = pytest.mark.slow
GOOD = (0, 1, 2)
"""Exit statuses of a command that worked, found faults, or refused its input."""
INDEX = ["--name", "n", "--licence", "l"]


def assert_bounded(outcome: Outcome, *statuses: int) -> None:
    """Check that an attempt ended by itself with a status of its own, one line of cause, and in bounded memory."""
    assert "Traceback" not in outcome.stderr, outcome.stderr[-3000:]
    assert outcome.status in (statuses or GOOD), f"{outcome.status}: {outcome.stderr[-2000:]}"
    assert outcome.peak_mb < 2048, f"{outcome.peak_mb:.0f} MB"
    if outcome.status == 2:
        cause = next(line for line in outcome.stderr.splitlines() if not line.startswith("reading "))
        assert "Error: " in cause or "DuplicateKey: " in cause, cause
        assert len(cause) < 500 and cause.isprintable(), cause


def png(width: int = 4, height: int = 4, real: bool = True) -> bytes:
    """Return a grey PNG; one that is not real claims its size and has no pixels."""
    pixels = zlib.compress((b"\0" + b"\x7f" * width) * height if real else b"")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def member(name: str, data: bytes = b"", **header: Any) -> bytes:
    """Return the blocks of one member, whatever its header claims."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in header.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + data + bytes(-len(data) % 512)


def sample(key: str, record: object = None, image: bytes | None = None) -> bytes:
    text = record if isinstance(record, bytes) else json.dumps({"label": 0} if record is None else record).encode()
    return member(f"{key}.json", text) + member(f"{key}.png", png() if image is None else image)


END = bytes(1024)
WHOLE = b"".join(sample(f"k{i}", {"label": i, "caption": f"c{i}"}) for i in range(4)) + END
HUGE = 1 << 35


def tars() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of damaged and hostile tars."""
    rng = random.Random(0)
    for i in range(12):
        yield f"cut-{i}", WHOLE[: rng.randrange(1, len(WHOLE) - 1)]
    for i in range(16):
        data = bytearray(WHOLE)
        for _ in range(1 + i % 3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield f"flip-{i}", bytes(data)
    for i in range(6):
        packed = bytearray(gzip.compress(WHOLE))
        packed[rng.randrange(10, len(packed))] ^= 0xFF
        yield f"gz-flip-{i}", bytes(packed)
    kinds = {
        "file": b"0",
        "dir": b"5",
        "link": b"1",
        "symlink": b"2",
        "fifo": b"6",
        "device": b"3",
        "odd": b"Z",
        "sparse": b"S",
        "longname": b"L",
        "longlink": b"K",
        "pax": b"x",
        "global": b"g",
        "solaris": b"X",
    }
    for name, kind in kinds.items():
        yield f"huge-{name}", member("k.png", size=HUGE, type=kind) + WHOLE
        yield f"gz-huge-{name}", gzip.compress(member("k.png", size=HUGE, type=kind) + bytes(1 << 20))
    yield "negative", member("k.png")[:124] + b"\xff" * 12 + member("k.png")[136:] + END
    for i, name in enumerate(
        (
            "../../x.png",
            "/etc/x.png",
            "a/../../x.png",
            "\x1b[2J.png",
            "\u202egnp.png",
            "x" * 90 + ".png",
            ".png",
            "..png",
            "k.",
            "k.__key__",
            "k.PNG",
            "k.png/",
            "a\nb.png",
            "__meta__/x.png",
            "k.tar.gz.zip.exe",
            "\udce9.png",
        )
    ):
        yield f"name-{i}", member(name, png()) + member(name.replace("png", "json"), b"{}") + END
    long = b"y" * 100_000 + b".png\0"
    yield "longname", member("././@LongLink", long, type=b"L") + member("x", png()) + END
    yield "pax-size", member("p", b"20 size=99999999999\n", type=b"x") + member("k.png", png()) + END
    yield "pax-digits", member("p", b"9" * 5000 + b" a=b\n", type=b"x") + member("k.png", png()) + END
    yield "pax-chain", member("p", b"10 a=bcde\n", type=b"x") * 5000 + WHOLE
    yield "pax-sparse", member("p", b"26 GNU.sparse.major=1\n26 GNU.sparse.minor=0\n", type=b"x") + WHOLE
    yield (
        "globals",
        b"".join(member("p", f"{len(str(i)) + 8} k{i:05d}=1\n".encode(), type=b"g") for i in range(3000)) + WHOLE,
    )
    yield "zeros", gzip.compress(WHOLE + bytes(200 << 20), 1)
    yield "twice", WHOLE + WHOLE
    yield "many-fields", b"".join(member(f"k.{i}", b"") for i in range(3000)) + END
    for name, head in {
        "zstd": b"\x28\xb5\x2f\xfd",
        "zip": b"PK\3\4",
        "html": b"<html>",
        "lfs": b"version https://git-lfs",
        "empty": b"",
        "zero": bytes(512),
        "zeros-only": bytes(1 << 20),
        "pickle": b"\x80\x04.",
    }.items():
        yield f"head-{name}", head


def annotations() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of hostile annotation files."""
    odd = [
        '"x"',
        "-1",
        "1.5",
        "1e999",
        "true",
        "[]",
        "{}",
        "NaN",
        "Infinity",
        "null",
        '""',
        "9" * 5000,
        "1" + "0" * 30,
        '"' + "x" * 100_000 + '"',
        '"\\ud800"',
        '"\\u0000\\u001b[31m"',
        "4000001",
    ]
    for field in ("label", "class_name", "caption", "captions", "attributes"):
        for i, value in enumerate(odd):
            yield f"{field}-{i}", f'{{"{field}": {value}}}'.encode()
    yield "deep", b'{"a":' * 100_000
    yield "deep-list", b"[" * 1_000_000
    yield "twice", b'{"label": 0, "label": 1}'
    yield "wide", b'{"attributes": {' + b",".join(b'"a%d": 1' % i for i in range(20_000)) + b"}}"
    yield "long", b'{"caption": "' + b"x" * (9 << 20) + b'"}'
    yield "names", json.dumps({"attributes": {"../../x": 1, "/etc": 2, "a/b": 3, "..": 4}}).encode()
    for i, name in enumerate(("label", "key", "caption", "\x1b[2J", "", "x" * 1000)):
        yield f"attribute-{i}", json.dumps({"attributes": {name: "v"}}).encode()


def images() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of hostile images."""
    for width, height in (
        (13_000, 13_000),
        (60_000, 60_000),
        (2**31 - 1, 2**31 - 1),
        (0, 0),
        (1, 2**31 - 1),
        (8192, 8192),
    ):
        yield f"claims-{width}x{height}", png(width, height, real=False)
    yield "large", png(8100, 8100)
    yield "long", png(1, 20_000)
    for name, head in {
        "svg": b"<svg/>",
        "gif": b"GIF89a",
        "tiff": b"II*\0",
        "bmp": b"BM",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0",
        "webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
        "jpeg": b"\xff\xd8\xff\xe0",
        "ico": b"\0\0\1\0",
    }.items():
        yield f"head-{name}", head + bytes(100)
    whole = png(64, 64)
    for cut in (20, 33, 40, len(whole) - 5):
        yield f"cut-{cut}", whole[:cut]
    text = b"tEXt" + b"k\0" + b"x" * 1000
    yield (
        "ztxt",
        whole[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + whole[33:],
    )
    bomb = b"zTXt" + b"k\0\0" + zlib.compress(bytes(100 << 20))
    yield (
        "ztxt-bomb",
        whole[:33] + struct.pack(">I", len(bomb) - 4) + bomb + struct.pack(">I", zlib.crc32(bomb)) + whole[33:],
    )


def index_and_verify(folder: Path) -> None:
    """Index a folder with both ways to handle faults, and verify it where an index was written."""
    assert_bounded(attempt_cli(["data", "index", str(folder), *INDEX]), 0, 2)
    outcome = attempt_cli(["data", "index", str(folder), *INDEX, "--on-error", "skip"])
    assert_bounded(outcome, 0, 2)
    if outcome.status == 0:
        assert_bounded(attempt_cli(["data", "verify", str(folder)]), 0, 1, 2)


TARS, ANNOTATIONS, IMAGES = dict(tars()), dict(annotations()), dict(images())


@pytest.mark.parametrize("name", TARS)
def test_tars(name: str, tmp_path: Path) -> None:
    (tmp_path / "train-0000.tar").write_bytes(TARS[name])
    index_and_verify(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"train-0000.tar", "index.json"}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations(name: str, tmp_path: Path) -> None:
    (tmp_path / "train-0000.tar").write_bytes(sample("a", ANNOTATIONS[name]) + sample("b", {}) + END)
    index_and_verify(tmp_path)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "train-0000.tar").write_bytes(sample("a", {}, IMAGES[name]) + sample("b", {}) + END)
    index_and_verify(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "loop", "broken", "other"])
def test_files_that_are_no_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train-0000.tar"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"zero": "/dev/zero", "loop": path, "broken": tmp_path / "gone", "other": "/etc/hostname"}
        path.symlink_to(targets[kind])
    assert_bounded(attempt_cli(["data", "index", str(tmp_path), *INDEX]), 2)
    (tmp_path / "index.json").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "index.json")
    assert_bounded(attempt_cli(["data", "verify", str(tmp_path)]), 2)


def edits() -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    """Yield (name, edit) of an index."""
    odd: list[Any] = [None, 3, -1, 1e308, "x", "../x", "/etc/passwd", [], {}, [None], {"a": None}, [[]], True, 10**30]
    for key in (
        "name",
        "licence",
        "classes",
        "attributes",
        "faults",
        "shards",
        "fields",
        "root",
        "renamed",
        "digest",
        "header",
    ):
        for i, value in enumerate(odd):
            yield f"{key}-{i}", lambda index, key=key, value=value: index.update({key: value})
    for key in ("file", "split", "n_samples", "sha256", "n_bytes", "missing"):
        for i, value in enumerate(odd):
            yield f"shard-{key}-{i}", lambda index, key=key, value=value: index["shards"][0].update({key: value})


EDITS = dict(edits())


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    (folder / "train-0000.tar").write_bytes(WHOLE)
    assert attempt_cli(["data", "index", str(folder), *INDEX]).status == 0
    return folder


@pytest.mark.parametrize("name", EDITS)
def test_indexes_that_were_sealed_again(name: str, indexed: Path, tmp_path: Path) -> None:
    """A digest is no signature: an index of someone else may hold anything."""
    (tmp_path / "train-0000.tar").write_bytes(WHOLE)
    index = json.loads((indexed / "index.json").read_text())
    EDITS[name](index)
    header = index.pop("header", None)
    if isinstance(header, dict) and header:
        try:
            header["digest"] = digest_json(index)
        except ValueError:
            pass
    (tmp_path / "index.json").write_text(json.dumps({"header": header, **index}))
    assert_bounded(attempt_cli(["data", "verify", str(tmp_path)]))


STORE_ODD: list[Any] = [None, 3, -1, "x", "../../x", [], {}, [None], {"a": None}, True, 10**30]


def store_edits() -> Iterator[tuple[str, str, Callable[[dict[str, Any]], object]]]:
    """Yield (name, file, edit) of a store."""
    for key in ("backbone", "cells", "data", "shards", "dtype", "recorded", "digest"):
        for i, value in enumerate(STORE_ODD):
            yield f"manifest-{key}-{i}", "manifest.json", lambda m, key=key, value=value: m.update({key: value})
    for key in ("keys", "label", "captions", "attributes", "cells", "left_out", "store", "shard", "split"):
        for i, value in enumerate(STORE_ODD):
            yield f"samples-{key}-{i}", "samples.json", lambda m, key=key, value=value: m.update({key: value})


STORE_EDITS = {name: (file, edit) for name, file, edit in store_edits()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from diffprobe.features.batch import FeatureBatch
    from diffprobe.features.manifest import Manifest, ShardEntry
    from diffprobe.features.writer import ExtractedBatch, StoreWriter

    recorded = {
        "backbone": "b",
        "data": "d",
        "licence": "l",
        "classes": ["x"],
        "attributes": {"a": ["v"]},
        "versions": {},
        "taps": {"mid_block": {"channels": 2, "size": [1, 1]}},
        "timesteps": {},
        "snr": [],
    }
    manifest = Manifest(
        backbone={"weights": {}, "taps": ["mid_block"], "timesteps": []},
        cells={"mid_block@t1:empty:mean": 2},
        data={"shard_set": "0" * 64},
        shards=(ShardEntry(file="train-0000.tar", split="train", n=3, sha256="0" * 64),),
        recorded=recorded,
    )
    writer = StoreWriter(tmp_path_factory.mktemp("store"), manifest)
    features = {"mid_block@t1:empty:mean": torch.ones(3, 2)}
    batch = FeatureBatch(features, ["a", "b", "c"], torch.zeros(3).long(), {"a": torch.zeros(3).long()})
    writer.write(manifest.shards[0], [ExtractedBatch(batch, [""] * 3)])
    return writer.path


def load_store(path: str) -> None:
    """Open a store and read all of it."""
    from diffprobe.features.reader import FeatureStore

    store = FeatureStore.open(path)
    for split in store.splits:
        store.load(split)
    store.classes(), store.attributes


def copy_store(store: Path, root: Path) -> Path:
    import shutil

    return Path(shutil.copytree(store, root / store.name))


@pytest.mark.parametrize("name", STORE_EDITS)
def test_stores_that_were_sealed_again(name: str, store: Path, tmp_path: Path) -> None:
    file, edit = STORE_EDITS[name]
    copy = copy_store(store, tmp_path)
    (path,) = copy.rglob(file)
    content = json.loads(path.read_text())
    header = content.pop("header")
    edit(content)
    write_artifact(path, content, kind=header["kind"], schema_version=header["schema_version"])
    assert_bounded(attempt(load_store, copy), 0, 2)
    for command in ("show", "verify", "list"):
        assert_bounded(attempt_cli(["store", command, str(copy if command != "list" else tmp_path)]))


def tensor_files() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of hostile tensor files."""

    def made(header: object, length: int | None = None, data: bytes = bytes(24)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    entry = {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}
    yield "empty", b""
    yield "short", b"\1\2\3"
    yield "lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for length in (0, 2**20, 2**40, 2**63, 2**64 - 1):
        yield f"length-{length}", made({"features": entry}, length)
    for i, shape in enumerate(([3], [3, -2], [2**40, 2**40], [True, 2], ["3", 2], None, [3, 2.0], [10**30])):
        yield f"shape-{i}", made({"features": {**entry, "shape": shape}})
    for i, offsets in enumerate(([0, 2**62], [-1, 23], [24, 0], None, ["0", "24"], [0])):
        yield f"offsets-{i}", made({"features": {**entry, "data_offsets": offsets}})
    for i, dtype in enumerate(("F64", "I8", None, 3, "pickle")):
        yield f"dtype-{i}", made({"features": {**entry, "dtype": dtype}})
    yield "deep", made(b"[" * 100_000)
    yield "not-json", made(b"{")
    yield "other-name", made({"weights": entry})
    yield "list", made([1, 2])


TENSORS = dict(tensor_files())


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", [*TENSORS, "pickle"])
def test_tensor_files(name: str, sealed: bool, store: Path, tmp_path: Path, canary: Canary) -> None:  # noqa: F811
    copy = copy_store(store, tmp_path)
    (path,) = copy.rglob("*.safetensors")
    path.write_bytes(canary.torch_file() if name == "pickle" else TENSORS[name])
    if sealed:
        from diffprobe.core.digest import digest_file

        (file,) = copy.rglob("samples.json")
        content = json.loads(file.read_text())
        header = content.pop("header")
        content["cells"]["mid_block@t1:empty:mean"]["sha256"] = digest_file(path)
        write_artifact(file, content, kind=header["kind"], schema_version=header["schema_version"])
    assert_bounded(attempt(load_store, copy), 2)
    assert_bounded(attempt_cli(["store", "verify", str(copy)]), 1)


def test_there_are_enough_inputs() -> None:
    assert sum(map(len, (TARS, ANNOTATIONS, IMAGES, EDITS, STORE_EDITS, TENSORS))) >= 500
