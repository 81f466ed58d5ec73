"""Raw samples, and the faults of whole shards."""

import gzip
import io
import os
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffprobe.config.schema import CapsConfig
from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard


def tar_of(path: Path, names: Sequence[str]) -> Path:
    """Write a tar that our own writer would refuse."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            header = tarfile.TarInfo(name)
            header.size = 1
            tar.addfile(header, io.BytesIO(b"x"))
    return path


def test_the_extension_begins_at_the_first_dot_after_the_last_slash(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a-0.tar", ["v1.0/cup/1.seg.PNG", "v1.0/cup/1.jpg"])
    (raw,) = read_shard(path)
    assert (raw.key, sorted(raw.files), raw.shard) == ("v1.0/cup/1", ["jpg", "seg.png"], "a-0.tar")


def test_members_of_no_sample_are_listed(tmp_path: Path) -> None:
    orphans: list[str] = []
    path = tar_of(tmp_path / "a-0.tar", ["README", "k.jpg", "._k.jpg"])
    assert [raw.key for raw in read_shard(path, orphans=orphans)] == ["k"]
    assert orphans == [f"member '{name}' belongs to no sample (no extension)" for name in ("README", "._k.jpg")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_listed_and_not_followed(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "a-0.tar", ["k.jpg"])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = kind, "k.jpg"
        tar.addfile(link)
    orphans: list[str] = []
    assert [raw.key for raw in read_shard(path, orphans=orphans)] == ["k"]
    assert orphans == ["member 'l.jpg' belongs to no sample (link or device)"]


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg", "a.jpg"], ["a.jpg", "b.jpg", "a.json"], ["a.jpg", "a.JPG"]])
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DuplicateKey, match=r"^a-0.tar: .*'a'"):
        list(read_shard(tar_of(tmp_path / "a-0.tar", names)))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_shard_that_is_cut_off_is_named_with_its_last_good_sample(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a-0{suffix}"
    data = random.Random(0).randbytes(20_000)
    write_shard(path, [(f"k{i}", {"bin": data[:: i + 1]}) for i in range(4)])
    path.write_bytes(path.read_bytes()[:25_000])
    with pytest.raises(ShardError, match=rf"a-0{suffix}: cannot read the shard to its end") as caught:
        list(read_shard(path))
    assert "samples read: 0, the last one: '(none)'" in str(caught.value)


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "k.jp\udce9", "READM\udcc9"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError, match=r"^a-0.tar: the name of member '.*\\udc.9.*' is not UTF-8 text") as caught:
        list(read_shard(tar_of(tmp_path / "a-0.tar", ["k.png", name])))
    str(caught.value).encode()  # the message itself is text


def shard_bytes(path: Path, n: int = 8) -> bytes:
    """Write a shard of `n` samples of noise, 2,048 bytes each in the tar, and return its bytes."""
    rng = random.Random(0)
    write_shard(path, [(f"k{i}", {"bin": rng.randbytes(1500)}) for i in range(n)])
    return path.read_bytes()


def test_any_cut_through_a_tar_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    data = shard_bytes(path)
    end = 8 * 2048  # what follows is the end mark, and zeros up to a full record
    for cut in [*range(512, end + 1024, 512), 700, end + 300]:
        path.write_bytes(data[:cut])
        with pytest.raises(ShardError, match=r"a-0.tar: cannot read the shard to its end"):
            list(read_shard(path))
    path.write_bytes(data[: end + 1024])
    assert len(list(read_shard(path))) == 8


def test_a_damaged_header_or_a_hole_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    data = shard_bytes(path)
    for place, hole in [
        (3 * 2048 + 10, b"\xff"),
        (3 * 2048, bytes(512)),
        (3 * 2048, bytes(2048)),
        (8 * 2048 + 2000, b"x"),
    ]:
        path.write_bytes(data[:place] + hole + data[place + len(hole) :])
        with pytest.raises(ShardError, match=r"a-0.tar: cannot read the shard to its end"):
            list(read_shard(path))


def test_a_flipped_bit_of_a_packed_shard_is_noticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "a-0.tar.gz", random.Random(0)
    data = shard_bytes(path)
    for _ in range(40):
        damaged = bytearray(data)
        damaged[rng.randrange(20, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"a-0.tar.gz: cannot read the shard to its end"):
            list(read_shard(path))


def test_all_parts_of_a_gzip_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    data = shard_bytes(path)
    packed = path.rename(tmp_path / "a-0.tar.gz")
    packed.write_bytes(gzip.compress(data[: 3 * 2048]) + gzip.compress(data[3 * 2048 :]))
    assert [raw.key for raw in read_shard(packed)] == [f"k{i}" for i in range(8)]


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a-0.tar: .*FileNotFoundError"):
        list(read_shard(tmp_path / "a-0.tar"))
    (tmp_path / "b-0.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ShardError, match=r"b-0.tar: .*ReadError"):
        list(read_shard(tmp_path / "b-0.tar"))


def pack(header: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """Return the blocks of one member, whatever its header claims."""
    block = header.tobuf(tarfile.GNU_FORMAT)
    return block + data + bytes(-len(data) % 512)


def huge(name: str = "k.png", size: int = 32 << 30, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, b"Z"])
def test_a_member_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path, suffix: str, kind: bytes) -> None:
    path = tmp_path / f"a-0{suffix}"
    data = pack(huge(kind=kind)) + bytes(4096)
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(ShardError, match=rf"^a-0{suffix}: .*the cap data.caps.sample_bytes|^a-0{suffix}: cannot read"):
        list(read_shard(path))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_that_claims_gigabytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a-0.tar"
    path.write_bytes(pack(huge(kind=kind)) + bytes(4096))
    with pytest.raises(ShardError, match="a-0.tar: .*an extended header of 34,359,738,368 bytes"):
        list(read_shard(path))


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    path.write_bytes(pack(huge(kind=tarfile.GNUTYPE_SPARSE)) + bytes(4096))
    with pytest.raises(ShardError, match="a-0.tar: .*a sparse member"):
        list(read_shard(path))
    for records in (
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)},
        {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"},
        {"GNU.sparse.numblocks": "1", "GNU.sparse.offset": "0", "GNU.sparse.size": str(1 << 40)},
    ):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            header = tarfile.TarInfo("k.png")
            header.pax_headers = records
            tar.addfile(header)
        with pytest.raises(ShardError, match="a-0.tar: .*(a sparse member|data.caps.sample_bytes)"):
            list(read_shard(path))


def test_all_files_of_a_sample_count(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    write_shard(path, [("k0", {"a": bytes(600), "b": bytes(600)}), ("k1", {"a": bytes(600)})])
    with pytest.raises(ShardError, match="a-0.tar: sample 'k0' has 1,200 bytes, more than 1,000") as caught:
        list(read_shard(path, caps=CapsConfig(sample_bytes=1000)))
    assert "data.caps.sample_bytes=1200" in str(caught.value.fix)
    assert len(list(read_shard(path, caps=CapsConfig(sample_bytes=1200)))) == 2


def test_more_zeros_than_any_padding_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe.shards import reader

    monkeypatch.setattr(reader, "_MAX_PADDING", 1 << 18)
    path = tmp_path / "a-0.tar.gz"
    write_shard(tmp_path / "a-0.tar", [("k", {"png": b"x"})])
    path.write_bytes(gzip.compress((tmp_path / "a-0.tar").read_bytes() + bytes(1 << 20)))
    with pytest.raises(ShardError, match="zeros after the end mark"):
        list(read_shard(path))


@pytest.mark.parametrize("data", [b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18", b"PK\3\4"])
def test_a_tar_by_name_that_is_packed_otherwise_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a-0.tar").write_bytes(data + bytes(2000))
    with pytest.raises(ShardError, match="^a-0.tar: the shard is packed with (zstd|bzip2|xz|lz4|zip)"):
        list(read_shard(tmp_path / "a-0.tar"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a-0.tar")
    with pytest.raises(ShardError, match="a-0.tar: the shard is not a regular file"):
        list(read_shard(tmp_path / "a-0.tar"))


def test_extensions_that_webdataset_reserves_belong_to_no_sample(tmp_path: Path) -> None:
    orphans: list[str] = []
    path = tar_of(tmp_path / "a-0.tar", ["a.jpg", "a.__key__", "a.__url__"])
    (raw,) = read_shard(path, orphans=orphans)
    assert (raw.key, list(raw.files)) == ("a", ["jpg"])
    assert len(orphans) == 2 and "reserved" in orphans[0]


def test_a_chain_of_extended_headers_is_one_error(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 10
    (tmp_path / "a-0.tar").write_bytes(pack(header, b"10 a=bcde\n") * 3000 + bytes(1024))
    with pytest.raises(ShardError, match="a-0.tar: cannot read the shard to its end"):
        list(read_shard(tmp_path / "a-0.tar"))
