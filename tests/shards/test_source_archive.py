"""Archives of others: read in place, and refused when they are not what they should be."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.source_archive import UNPACKED, FilePart, by_tail, open_inner, open_source, read_text, require
from diffprobe.shards.tiny_archive import tar_bytes, write_tar

FILES = {"set/a/1.jpg": b"one", "set/b/2.JPG": b"second", "set/list.txt": "naïve\n".encode(), "set/._x.jpg": b"junk"}


def listed(source: Path, out: Path) -> dict[str, bytes]:
    return {name: part.read() for name, part in open_source(source, out=out, expected="a set.tar").items()}


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
def test_an_archive_and_its_folder_have_the_same_files(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = {file: data for file, data in FILES.items() if "._" not in file}
    assert listed(write_tar(tmp_path / name, FILES), out) == expected
    for file, data in FILES.items():
        (tmp_path / "folder" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / file).write_bytes(data)
    assert listed(tmp_path / "folder", out) == expected


def test_an_unpacked_tar_has_the_time_of_its_archive_and_is_used_again(tmp_path: Path) -> None:
    archive, out = write_tar(tmp_path / "set.tar.gz", FILES), tmp_path / "out"
    first = open_source(archive, out=out, expected="")
    plain = next(iter(first.values())).path
    assert plain.parent == out / UNPACKED and plain.stat().st_mtime_ns == archive.stat().st_mtime_ns
    inode = plain.stat().st_ino
    assert open_source(archive, out=out, expected="") == first and plain.stat().st_ino == inode
    write_tar(archive, {"other.jpg": b"x"})
    os.utime(archive, ns=(1, 1))
    assert list(open_source(archive, out=out, expected="")) == ["other.jpg"]


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "a\\..\\evil.jpg"])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "set.tar.gz", {"a.jpg": b"1", name: b"2"})
    with pytest.raises(ShardError, match=r"set.tar.gz: '.*evil.jpg' leads out(?s:.*)expected: a set.tar"):
        listed(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        member = tarfile.TarInfo("a/link.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ShardError, match="'a/link.jpg' is a link, a device"):
        listed(tmp_path / "set.tar", tmp_path / "out")


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    whole = tar_bytes({f"{i}.jpg": bytes([i + 1]) * 700 for i in range(9)})
    header = bytearray(whole)
    header[3 * 1536 : 3 * 1536 + 512] = b"x" * 512  # of the fourth file
    cases = {
        "cut.tar": (whole[:2000], "no header of a file at byte 1,536"),
        "header.tar": (bytes(header), "no header of a file at byte 4,608"),
        "cut.tar.gz": (gzip.compress(whole)[:-20], "cannot be read to its end"),
        "text.tar": (b"<html>not found</html>" * 100, "cannot be read to its end"),
        "set.zip": (b"PK\3\4....", "packed with zip(?s:.*)unpack it"),
        "set.tar.bz2": (b"BZh9....", "packed with bzip2"),
        "empty.tar": (tar_bytes({}), "has no file"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ShardError, match=message):
            listed(tmp_path / name, tmp_path / "out")
    with pytest.raises(ShardError, match="does not exist(?s:.*)expected: a set.tar"):
        listed(tmp_path / "none.tar", tmp_path / "out")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    (tmp_path / "twice.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ShardError, match="'a.jpg' occurs twice"):
        listed(tmp_path / "twice.tar", tmp_path / "out")


def test_a_tar_in_a_tar_is_read_in_place(tmp_path: Path) -> None:
    inner = {f"{i}.jpg": bytes([i]) * (i + 1) for i in range(5)}
    archive = write_tar(tmp_path / "outer.tar", {"x.tar": tar_bytes(inner), "y.tar": tar_bytes({"z.jpg": b"z"})})
    parts = open_source(archive, out=tmp_path, expected="")
    found = open_inner(parts["x.tar"], name="x.tar", expected="")
    assert {name: part.read() for name, part in found.items()} == inner
    cut = FilePart(path=archive, offset=parts["x.tar"].offset, n_bytes=1024)  # without its end mark
    with pytest.raises(ShardError, match="x.tar"):
        open_inner(cut, name="x.tar", expected="")


def test_files_by_the_end_of_their_name(tmp_path: Path) -> None:
    parts = open_source(write_tar(tmp_path / "set.tar", FILES), out=tmp_path, expected="")
    assert set(by_tail(parts, 2, ("jpg",))) == {"a/1.jpg", "b/2.JPG"} and set(by_tail(parts, 1)) >= {"list.txt"}
    assert read_text(parts["set/list.txt"], "list.txt") == "naïve\n"
    with pytest.raises(ShardError, match="two files are called '1.jpg'"):
        by_tail({**parts, "other/1.jpg": parts["set/list.txt"]}, 1)
    with pytest.raises(ShardError, match="lacks 2 files(?s:.*)no.txt(?s:.*)expected: lists"):
        require(parts, ["set/a/1.jpg", "no.txt", "nor.txt"], source=tmp_path, expected="lists")
    latin = FilePart(path=tmp_path / "latin.txt")
    latin.path.write_bytes(b"na\xefve")
    with pytest.raises(ShardError, match="latin.txt is not UTF-8 text .byte 2"):
        read_text(latin, "latin.txt")


def test_a_part_of_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    part = FilePart(path=tmp_path / "x", offset=2, n_bytes=6)
    part.path.write_bytes(b"0123456789")
    assert part.read() == b"234567" and part.part(1, 2).read() == b"34" and FilePart(path=part.path).size() == 10
    part.path.write_bytes(b"0123")
    with pytest.raises(OSError, match="ends within the file at byte 2"):
        part.read()
