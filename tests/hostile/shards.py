"""Hostile shards: each case is one line of data, the files of a folder and how the commands have to end.

A case is added to a folder with valid shards of the splits val and test. `test_hostile_shards.py` runs the cases.
"""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

CODES = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\x9b31m\u200b\u2066"
FORMULA = "=cmd|' /C calc'!A0"
DEEP = 100_000
END = bytes(10_240)
Content = bytes | Callable[[Path], object]
Ending = Literal["refused", "fault", "works"]
"""refused: `data index` writes no index; fault: `data verify` and `extract` name the sample; works: all succeed."""


@dataclass(frozen=True)
class Case:
    """One hostile folder.

    Attributes:
        files: path in the folder -> its bytes, or a function that makes it.
        ending: how the commands end.
        names: texts that the messages have to have.
        settings: further words of `data index`.
    """

    files: Mapping[str, Content]
    ending: Ending
    names: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


# ---- tars, member by member


def png(width: int = 32, height: int = 32, mode: str = "RGB", colour: Any = "red", **options: Any) -> bytes:
    return picture("PNG", Image.new(mode, (width, height), colour), **options)


def picture(format: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def member(name: str, data: bytes = b"", *, size: int | None = None, type: bytes = b"0", **fields: Any) -> bytes:
    """Return a member; `size` is what its header declares."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, type
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def gnu_sparse(name: str, size: int) -> bytes:
    """Return an old GNU sparse member: a header of 512 bytes that stands for `size` bytes of zeros."""
    header = bytearray(member(name, type=b"S")[:512])
    header[257:265] = b"ustar  \0"
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    return checked(header)


def checked(header: bytearray) -> bytes:
    """Return a header with the checksum of its content."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def changed(at: int, value: bytes) -> bytes:
    """Return a tar whose first header has other bytes at a place, with a valid checksum."""
    content = bytearray(sample("a"))
    content[at : at + len(value)] = value
    return tar(checked(content[:512]) + content[512:])


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def sample(key: str, image: bytes | None = None, record: Any = None, **more: bytes) -> bytes:
    """Return the members of one sample; a record that is bytes is written as it is."""
    record = {"label": 0, "class_name": "cat", "caption": "a cat"} if record is None else record
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return b"".join(
        member(f"{key}.{extension}", data) for extension, data in {"json": text, "png": image or png(), **more}.items()
    )


def gzip_bomb(n_bytes: int, *members: bytes) -> Callable[[Path], object]:
    """Write a gzipped tar with a last member of zeros, block by block."""

    def make(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(b"".join(members))
            for _ in range(n_bytes >> 20):
                file.write(bytes(2**20))
            file.write(END)

    return make


def many_gzip(block: bytes, n: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(n):
                file.write(block)
            file.write(END)

    return make


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def truncated(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


# ---- images


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(
    width: int, height: int, *, colour: int = 2, depth: int = 8, data: bytes = b"", before: bytes = b""
) -> bytes:
    """Return a PNG with a header of any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", data or zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + body + chunk(b"IEND", b"")


def zeros_of(width: int, height: int, channels: int) -> bytes:
    """Return the packed zeros of an image."""
    packer, row = zlib.compressobj(1), bytes(1 + width * channels)
    return b"".join(packer.compress(row) for _ in range(height)) + packer.flush()


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return picture("JPEG", Image.new(mode, (40, 20)), **options)


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def frames(format: str, **options: Any) -> bytes:
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return picture(format, images[0], save_all=True, append_images=images[1:], **options)


def jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG with another size in its header."""
    content = bytearray(jpeg())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(touched) (w) file closefile\nshowpage\n"


@dataclass(frozen=True)
class Picture:
    """One hostile image, as the png of a sample."""

    make: Callable[[], bytes]
    ending: Ending
    names: tuple[str, ...] = ("train-0000.tar", "bad")
    field: str = field(default="png")


IMAGES: dict[str, Picture] = {
    "13000 x 13000 declared": Picture(lambda: png_of(13_000, 13_000, colour=6), "fault", ("bad", "13,000 x 13,000")),
    "13000 x 13000 packed": Picture(
        lambda: png_of(13_000, 13_000, colour=6, data=zeros_of(13_000, 13_000, 4)), "fault", ("bad", "image_pixels")
    ),
    "largest declared": Picture(lambda: png_of(2**31 - 1, 2**31 - 1), "fault", ("bad", "image_pixels")),
    "no width": Picture(lambda: png_of(0, 5), "fault"),
    "at the cap": Picture(lambda: png_of(8192, 8192, colour=6, data=zeros_of(8192, 8192, 4)), "works"),
    "over the cap by a row": Picture(lambda: png_of(8192, 8193), "fault", ("bad", "image_pixels")),
    "jpeg of 65500 x 65500": Picture(lambda: jpeg_of(65_500, 65_500), "fault", ("bad", "image_pixels"), "jpg"),
    "long and thin": Picture(lambda: png(1, 20_000), "works"),
    "wide and flat": Picture(lambda: png(20_000, 1), "works"),
    "longest": Picture(lambda: png(1, 2_000_000), "works"),
    "one pixel": Picture(lambda: png(1, 1), "works"),
    "truncated": Picture(lambda: truncated(png(64, 64), 0.5), "fault"),
    "truncated header": Picture(lambda: png()[:20], "fault"),
    "empty": Picture(lambda: b"\0"[:0], "fault"),
    "noise": Picture(lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "fault"),
    "bad crc": Picture(lambda: png().replace(b"IHDR", b"IHDS"), "fault"),
    "text bomb": Picture(
        lambda: png_of(32, 32, data=zeros_of(32, 32, 3), before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))),
        "fault",
    ),
    "profile bomb": Picture(
        lambda: png_of(32, 32, data=zeros_of(32, 32, 3), before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28)))),
        "fault",
    ),
    "more data than pixels": Picture(lambda: png_of(8, 8, data=zlib.compress(bytes(2**28))), "works"),
    "many text chunks": Picture(
        lambda: png_of(32, 32, data=zeros_of(32, 32, 3), before=chunk(b"tEXt", b"a\0" + b"x" * 900_000) * 100), "fault"
    ),
    "animated webp": Picture(lambda: frames("WEBP"), "works", field="webp"),
    "animated png": Picture(lambda: frames("PNG"), "works"),
    "animated gif": Picture(lambda: frames("GIF"), "fault"),
    "cmyk": Picture(lambda: jpeg("CMYK"), "works", field="jpg"),
    "grey": Picture(lambda: png(mode="L", colour=3), "works"),
    "grey with alpha": Picture(lambda: png(mode="LA", colour=(3, 4)), "works"),
    "palette": Picture(lambda: png(mode="P", colour=0), "works"),
    "bilevel": Picture(lambda: png(mode="1", colour=1), "works"),
    "16 bit": Picture(lambda: png(mode="I;16", colour=40_000), "fault", ("bad", "8 bits")),
    "16 bit colour": Picture(
        lambda: png_of(8, 8, depth=16, data=zeros_of(8, 8, 6)), "fault", ("bad", "8 bits")
    ),
    "orientation": Picture(oriented, "works", field="jpg"),
    "polyglot with a zip": Picture(lambda: png() + b"PK\x03\x04" + b"\0" * 100, "works"),
    "polyglot with a page": Picture(lambda: jpeg(comment=b"<script>alert(1)</script>"), "works", field="jpg"),
    "svg": Picture(lambda: SVG, "fault"),
    "eps": Picture(lambda: EPS, "fault"),
    "bmp": Picture(lambda: picture("BMP", Image.new("RGB", (4, 4))), "fault"),
    "tiff": Picture(lambda: picture("TIFF", Image.new("RGB", (4, 4))), "fault"),
    "a tar": Picture(lambda: tar(member("x.png", b"x")), "fault"),
}  # fmt: skip

RECORDS: dict[str, tuple[Any, Ending, tuple[str, ...]]] = {
    "empty": (b" ", "refused", ("bad", "not JSON")),
    "brace": (b"{", "refused", ("bad", "not JSON")),
    "list": ([], "refused", ("bad", "object")),
    "text": ("x", "refused", ("bad", "object")),
    "not utf8": (b'{"caption": "\xff"}', "refused", ("bad", "not JSON")),
    "utf16": (json.dumps({"label": 0}).encode("utf-16"), "refused", ("bad", "not JSON")),
    "deep list": (b"[" * DEEP, "refused", ("bad", "not JSON")),
    "deep value": (b'{"caption": ' + b"[" * 70 + b"]" * 70 + b"}", "refused", ("bad",)),
    "duplicate key": (b'{"label": 0, "label": 1}', "refused", ("bad", "not JSON")),
    "long number": (b'{"label": ' + b"9" * 100_000 + b"}", "refused", ("bad",)),
    "long label": (b'{"label": ' + b"9" * 4000 + b"}", "refused", ("bad", "label")),
    "overflow": (b'{"label": 1e999}', "refused", ("bad",)),
    "infinity": (b'{"label": Infinity}', "refused", ("bad",)),
    "nan label": (b'{"label": NaN}', "works", ()),
    "null label": ({"label": None}, "works", ()),
    "a million": ({"label": 10**6, "class_name": "far"}, "works", ()),
    "too large label": ({"label": 10**9}, "refused", ("bad", "caps.label")),
    "negative label": ({"label": -5}, "refused", ("bad", "-5")),
    "fraction label": ({"label": 1.5}, "refused", ("bad", "1.5")),
    "text label": ({"label": "3"}, "refused", ("bad", "'3'")),
    "bool label": ({"label": True}, "refused", ("bad", "label")),
    "list label": ({"label": [0]}, "refused", ("bad", "label")),
    "other name": ({"label": 0, "class_name": "dog"}, "refused", ("label 0", "'dog'", "'cat'")),
    "name of two labels": ({"label": 1, "class_name": "cat"}, "refused", ("'cat'", "labels: 0, 1")),
    "name number": ({"class_name": 3}, "refused", ("bad", "class_name")),
    "name of codes": ({"label": 1, "class_name": CODES}, "works", ()),
    "caption number": ({"caption": 3}, "refused", ("bad", "caption")),
    "caption list": ({"caption": ["x"]}, "refused", ("bad", "caption")),
    "caption of codes": ({"caption": CODES}, "works", ()),
    "caption of a million": ({"caption": "x" * 10**6}, "works", ()),
    "caption too long": ({"caption": "x" * (9 * 2**20)}, "refused", ("bad", "annotation_bytes")),
    "caption surrogate": (b'{"caption": "\\ud800"}', "refused", ("bad", "surrogate")),
    "caption nul": ({"caption": "a\0b"}, "works", ()),
    "captions text": ({"captions": "x"}, "refused", ("bad", "captions")),
    "captions of numbers": ({"captions": [1]}, "refused", ("bad", "captions")),
    "attributes list": ({"attributes": ["x"]}, "refused", ("bad", "attributes")),
    "attributes nested": ({"attributes": {"a": {"b": 1}}}, "refused", ("bad", "attributes.a")),
    "attributes infinite": (b'{"attributes": {"a": Infinity}}', "refused", ("bad", "attributes.a")),
    "attributes of codes": ({"attributes": {CODES: CODES}}, "refused", ("control character", "--rename")),
    "values of codes": ({"attributes": {"a": CODES}}, "works", ()),
    "attribute label": ({"attributes": {"label": "sharp"}}, "refused", ("label", "--rename")),
    "attribute path": ({"attributes": {"../../x": "y", "/etc": FORMULA}}, "works", ()),
    "attribute empty name": ({"attributes": {"": "y"}}, "refused", ()),
    "attribute of codes nested": ({"attributes": {CODES: []}}, "refused", ("bad",)),
    "many attributes": ({"attributes": {f"a{i}": i for i in range(20_000)}}, "works", ()),
}  # fmt: skip
"""Name -> the json of a sample, how it ends, and what the message has to name."""


def shards() -> dict[str, Case]:
    """Return the cases of whole shards and folders."""
    good, name = tar(sample("a"), sample("b")), "train-0000.tar"
    tgz = gzip.compress(good)
    bad: dict[str, tuple[Content, tuple[str, ...]]] = {
        "sparse gnu of 8 GB": (tar(gnu_sparse("a.png", 8 * 2**30)), ("sparse",)),
        "sparse pax 0.1": (
            tar(member("a.png", pax_headers={"GNU.sparse.size": str(2**33), "GNU.sparse.map": "0,0"})), ("sparse",)),
        "sparse pax 0.0": (
            tar(member("a.png", pax_headers={"GNU.sparse.size": "8589934592", "GNU.sparse.numblocks": "0"})),
            ("sparse",)),
        "sparse pax 1.0": (
            tar(member("a.png", b"0\n" + bytes(510), pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": str(2**35)})), ("sparse",)),
        "8 GB declared": (tar(member("a.png", b"x", size=2**33)), ("a", "sample_bytes")),
        "size in pax": (tar(member("a.png", b"x", pax_headers={"size": str(2**40)})), ("a", "sample_bytes")),
        "negative size": (changed(124, b"\xff" * 12), ()),
        "negative size in pax": (tar(member("a.png", b"x", pax_headers={"size": "-5"})), ()),
        "no number as size": (changed(124, b"zzzzzzzzzzz\0"), ()),
        "extended header of 8 GB": (tar(member("h", size=2**33 - 1, type=b"x")), ("extended header",)),
        "long name of 8 GB": (tar(member("h", size=2**33 - 1, type=b"L")), ("extended header",)),
        "pax without end": (tar(member("h", b"99999999999999999999 path=a\n", type=b"x"), sample("a")), ()),
        "pax of length 0": (tar(member("h", b"0 path=a\n", type=b"x"), sample("a")), ()),
        "name of 100,000 letters": (tar(sample("x" * 100_000)), ()),
        "chain of headers": (tar(member("h", b"6 a=b\n", type=b"x") * 3000, sample("a")), ()),
        "truncated in a header": (good[:200], ("truncated",)),
        "truncated in a member": (good[:1700], ()),
        "without end mark": (good[: -len(END)], ()),
        "truncated end mark": (good[: -len(END) + 512], ()),
        "data after the end": (good + sample("c"), ("end mark",)),
        "two tars": (good + tar(sample("c")), ("end mark",)),
        "changed header": (good[:5] + b"x" + good[6:], ()),
        "no tar": (b"hello" * 1000, ()),
        "empty file": (b"", ()),
        "one byte": (b"\0", ()),
        "zip": (b"PK\x03\x04" + bytes(1000), ("zip",)),
        "zstd": (b"\x28\xb5\x2f\xfd" + bytes(1000), ("zstd",)),
        "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", ()),
        "key in two places": (tar(sample("a"), sample("b"), sample("a")), ("'a'",)),
        "key of another shard": (tar(sample("val/0")), ("val/0", "val-0000.tar")),
        "two fields of one name": (tar(sample("a"), member("a.PNG", png())), ("'a'", ".png")),
        "name not utf8": (tar(member("a\udcff.png", png())), ("UTF-8",)),
        "fifo": (os.mkfifo, ("not a regular file",)),
        "zeros without end": (link("/dev/zero"), ("not a regular file",)),
        "random without end": (link("/dev/random"), ("not a regular file",)),
        "terminal": (link("/dev/tty"), ("not a regular file",)),
        "link to itself": (link(name), (name,)),
        "link to nothing": (link("nowhere"), (name,)),
        "device": (lambda path: os.mknod(path, 0o020600, os.makedev(1, 5)), ("not a regular file",)),
        "link to the passwords": (link("/etc/passwd"), ()),
        "only hidden members": (tar(member("__x__/a.png", png())), ()),
        "members without extension": (tar(sample("a"), member("README", b"x")), ("README",)),
        "links inside": (tar(sample("a"), member("b.png", type=b"2", linkname="/etc/passwd")), ("b.png",)),
        "devices inside": (tar(sample("a"), member("b.png", type=b"3")), ("b.png",)),
        "pipes inside": (tar(sample("a"), member("b.png", type=b"6")), ("b.png",)),
        "codes in a name without extension": (tar(sample("a"), member(f"{CODES}/x", b"x")), ()),
        "codes in a sample without image": (tar(sample("a"), member(f"{CODES}/b.txt", b"x")), ("no image",)),
        "json alone": (tar(sample("a"), member("b.json", b"{}")), ("'b'", "no image")),
        "two images": (tar(sample("a", jpg=jpeg())), ("'a'", "several images")),
        "cls of text": (tar(sample("a", cls=b"cat")), ("'a'", "cls")),
        "cls of another label": (tar(sample("a", cls=b"1")), ("'a'", "cls")),
        "cls of digits": (tar(sample("a", cls=b"9" * 5000)), ("'a'", "cls")),
        "cls of other digits": (tar(sample("a", cls="\u0661".encode())), ("'a'", "cls")),
        "txt not utf8": (tar(sample("a", record={"label": 0}, txt=b"\xff")), ("'a'", "txt")),
    }  # fmt: skip
    cases = {what: Case({name: content}, "refused", (name, *names)) for what, (content, names) in bad.items()}
    cases["only hidden members"] = Case(cases["only hidden members"].files, "works")
    packed: dict[str, tuple[Content, tuple[str, ...]]] = {
        "gzip of a large member": (gzip_bomb(512 * 2**20, member("a.png", size=2**29)), ("'a.png'", "sample_bytes")),
        "gzip of a large member of no sample": (gzip_bomb(512 * 2**20, member("README", size=2**29)), ("README",)),
        "gzip of zeros after the end": (gzip_bomb(80 * 2**20, sample("a"), END), ("zeros after the end",)),
        "gzip of many small fields": (many_gzip(b"".join(member(f"a.e{i}", size=2**20) + bytes(2**20)
            for i in range(300)), 1), ("'a'", "sample_bytes")),
        "gzip truncated": (tgz[:-20], ()),
        "gzip checksum": (tgz[:-8] + b"0000" + tgz[-4:], ()),
        "gzip within gzip": (gzip.compress(tgz), ()),
        "gzip of nothing": (gzip.compress(b""), ()),
        "gzip with a tail": (tgz + b"tail", ()),
        "gzip flags": (tgz[:3] + b"\xff" + tgz[4:], ()),
    }  # fmt: skip
    cases |= {
        what: Case({f"{name}.gz": content}, "refused", ("train-0000.tar.gz", *names))
        for what, (content, names) in packed.items()
    }
    keys = [
        "../../../tmp/owned",
        "/etc/owned",
        CODES.replace(".", ""),
        FORMULA,
        "a" * 3000,
        "con/../x",
        "~/x",
        "$(touch owned)",
        "\\\\h\\x",
    ]
    cases |= {f"key {ascii(key)[:20]}": Case({name: tar(sample(key))}, "works") for key in keys}
    cases |= {
        "sample that is large": Case({f"{name}.gz": gzip_bomb(200 * 2**20, member("bad.json", b"{}"),
            member("bad.png", size=200 * 2**20))}, "fault", ("bad", "cannot decode")),
        "many empty members": Case({f"{name}.gz": many_gzip(member("d/", type=b"5"), 200_000)}, "works"),
        "many samples of the same key": Case({f"{name}.gz": many_gzip(sample("a"), 1000)}, "refused", ("two files",)),
        "no sample": Case({name: tar()}, "works"),
        "link to a shard": Case({"x/y.dat": good, name: link("x/y.dat")}, "works"),
        "tgz beside": Case({name: tar(sample("a")), "train-0001.tgz": gzip.compress(tar(sample("b")))}, "works"),
        "upper case": Case({"train-0000.TAR": good}, "works"),
        "zst beside": Case({name: good, "train-0001.tar.zst": b"x"}, "refused", ("train-0001.tar.zst", "zstd")),
        "part beside": Case({name: good, "train-0001.tar.part": b"x"}, "refused", ("tar.part",)),
        "two splits": Case({name: good, "train-test-0.tar": tar(sample("x"))}, "refused", ("train-test-0.tar",)),
        "no split": Case({name: good, "0001.tar": tar(sample("x"))}, "refused", ("0001.tar", "--split")),
        "split of codes": Case({name: good, f"{CODES.replace('/', '')}-0.tar": tar(sample("x"))}, "works"),
        "joined splits": Case({name: good, "training-0.tar": tar(sample("x"))}, "refused", ("training-0.tar",)),
        "folder loop": Case({name: good, "sub": link(".")}, "works"),
        "folder named as a shard": Case({name: good, "train-0001.tar": lambda path: path.mkdir()}, "works"),
        "line break in a name": Case({name: good, "train\n-0001.tar": tar(sample("x"))}, "works"),
        "name not utf8": Case({name: good, "train-\udcff-01.tar": tar(sample("x"))}, "refused", ("UTF-8",)),
    }  # fmt: skip
    return cases


def all_cases() -> dict[str, Case]:
    """Return all cases by name. Images are made here, so call it in a test."""
    found = {f"shard: {name}": case for name, case in shards().items()}
    for name, (record, ending, names) in RECORDS.items():
        members = tar(sample("a"), sample("bad", record=record))
        found[f"json: {name}"] = Case({"train-0000.tar": members}, ending, names)
    for name, image in IMAGES.items():
        found[f"image: {name}"] = Case({"train-0000.tar": image_shard(image)}, image.ending, image.names)
    return found


def image_shard(image: Picture) -> Callable[[Path], object]:
    """Return a function that writes a shard with a valid sample and one with a hostile image."""

    def make(path: Path) -> None:
        text = json.dumps({"label": 0, "class_name": "cat"}).encode()
        bad = member("bad.json", text) + member(f"bad.{image.field}", image.make())
        path.write_bytes(tar(sample("a"), bad))

    return make
