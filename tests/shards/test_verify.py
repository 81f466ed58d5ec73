"""Verification gathers every fault of a set."""

from collections.abc import Callable

from diffprobe.shards.index import ShardSet
from diffprobe.shards.verify import verify
from diffprobe.shards.writer import write_shard

Make = Callable[..., ShardSet]


def test_a_good_set(make_set: Make) -> None:
    read: list[str] = []
    found = verify(make_set(3, 2), on_shard=read.append)
    assert (found.n_good, found.faults) == (5, ())
    assert read == ["train-0000.tar", "train-0001.tar"]


def test_a_changed_byte_is_noticed_by_its_checksum(make_set: Make) -> None:
    shard_set = make_set(3, 2)
    path = shard_set.root / "train-0001.tar"
    path.write_bytes(path.read_bytes().replace(b"number 3", b"number 9"))
    assert ShardSet.load(shard_set.root) == shard_set  # the size is the same
    found = verify(shard_set)
    assert found.faults == ("train-0001.tar: the shard has changed since it was indexed (sha256 differs).",)
    assert found.n_good == 5


def test_all_faults_are_gathered(make_set: Make, files: Callable[..., dict[str, bytes]]) -> None:
    shard_set = make_set(2, 2, 2, change=lambda number, members: members.update(png=b"") if number == 0 else None)
    write_shard(shard_set.root / "train-0001.tar", [("k001", files(1))])
    (shard_set.root / "train-0002.tar").write_bytes(b"no tar")
    found = verify(shard_set)
    assert found.n_good == 1
    assert [fault.split(" (")[0] for fault in found.faults] == [
        "train-0000.tar, sample 'k000': cannot decode image 'png'",
        "train-0001.tar: the shard has changed since it was indexed",
        "train-0001.tar: key 'k001' also occurs in train-0000.tar.",
        "train-0001.tar: the shard has 1 samples, the index 2.",
        "train-0002.tar: the shard has changed since it was indexed",
        "train-0002.tar: cannot read the shard to its end",
    ]
