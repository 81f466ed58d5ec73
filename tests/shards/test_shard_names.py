"""Which files of a folder are shards, and which split each belongs to."""

import os
from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.shard_names import build_command, find_shards, split_of, splits_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val-0.tar.gz", "val"),
        ("train.tar", "train"),
        ("train-000.tar", "train"),
        ("TRAIN_0001.TAR", "train"),
        ("train0007.tgz", "train"),
        ("train-00000-of-00064.tar", "train"),
        ("test_00003_of_00010.tar", "test"),
        ("imagenet-val-000012.tar", "val"),
        ("imagenet1k-train-0000.tar", "train"),
        ("cc3m-validation-0001.tar", "val"),
        ("coco_dev_part-3.tar", "val"),
        ("train_shard_00004.tar", "train"),
        ("training.000003.tar", "train"),
        ("pretrain-0000.tar", "pretrain"),
        ("test-hard-0012.tar", "test-hard"),
        ("extra-0.tar", "extra"),
        ("validation/00000.tar", "val"),
        ("train/part1/00000.tar", "train"),
        ("train/n01440764.tar", "train"),
        ("webdata/test/shard-0001.tar", "test"),
    ],
)
def test_splits_by_public_conventions(name: str, split: str) -> None:
    assert splits_of([name]) == {name: split}


@pytest.mark.parametrize(
    "name", ["00000.tar", "shard-000000.tar", "n01440764.tar", "data.tar", "part-00001-of-00002.tar", "a/b-0000.tar"]
)
def test_a_name_without_a_split_is_refused_with_the_option_that_gives_one(name: str) -> None:
    with pytest.raises(ShardError, match=r"(?s)without a split.*--split"):
        splits_of([name])
    assert splits_of([name], split="all") == {name: "all"}


def test_two_splits_in_one_name_are_refused() -> None:
    with pytest.raises(ShardError, match="train-val-000.tar: its name has train and val"):
        splits_of(["train-val-000.tar", "test-000.tar"])
    with pytest.raises(ShardError, match="two splits"):
        split_of(Path("train-val-000.tar"))


@pytest.mark.parametrize(
    "names",
    [
        ("validation-000.tar", "val-000.tar"),
        ("dev-000.tar", "valid-000.tar"),
        ("cc3m-train-0000.tar", "cc12m-train-0000.tar"),
        ("a/train/0.tar", "b/train/0.tar"),
    ],
)
def test_two_sets_are_not_joined_into_one_split(names: tuple[str, str]) -> None:
    with pytest.raises(ShardError, match="would be joined into the split") as caught:
        splits_of(list(names))
    assert names[0] in str(caught.value) and names[1] in str(caught.value)


def test_shards_of_subfolders_belong_to_the_set_and_hidden_files_do_not(tmp_path: Path) -> None:
    for name in ("train/0001.tar", "train/0000.tgz", "val/a/0.TAR.GZ", ".cache/x.tar", "._train-0.tar", "classes.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_shards(tmp_path)]
    assert found == ["train/0000.tgz", "train/0001.tar", "val/a/0.TAR.GZ"]


def test_a_folder_that_is_linked_into_itself_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").touch()
    (tmp_path / "train" / "again").symlink_to(tmp_path)
    assert len(find_shards(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train-0001.tar.zst", "zstd -d"),
        ("train-0001.tar.bz2", "bunzip2"),
        ("train-0001.tbz2", "gzip"),
        ("train-0001.tar.xz", "unxz"),
        ("train-0001.txz", "gzip"),
        ("train-0001.tar.lz4", "lz4"),
        ("TRAIN-0001.TAR.ZST", "zstd"),
        ("train-0001.tar.part", "unfinished"),
        ("train-0001.tar.gz.aria2", "unfinished"),
        ("train-0001.tar.1", "unfinished"),
        ("train-0001.tar.br", "compression"),
        ("sub/train-0001.tar.zst", "zstd"),
    ],
)
def test_what_looks_like_a_shard_and_is_not_read_is_named(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "train-0000.tar").touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ShardError, match="look like shards and are not read") as caught:
        find_shards(tmp_path)
    assert name in str(caught.value) and hint in str(caught.value)


def test_files_that_describe_shards_are_no_shards(tmp_path: Path) -> None:
    for name in ("train-0000.tar", "train-0000.tar.md5", "train-0000.tar.idx", "train-0000.tar.json", "0_stats.json"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(tmp_path)] == ["train-0000.tar"]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0000.tar")
    with pytest.raises(ShardError, match=r"train-0000.tar: not a regular file"):
        find_shards(tmp_path)


def test_a_name_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "train-\udcff-01.tar").touch()
    with pytest.raises(ShardError, match=r"not read[\s\S]*its name is not UTF-8 text[\s\S]*rename"):
        find_shards(tmp_path)


def test_a_folder_of_images_is_told_from_one_of_shards(tmp_path: Path) -> None:
    assert build_command(tmp_path) is None
    (tmp_path / "my cats").mkdir()
    (tmp_path / "my cats" / "1.JPG").write_bytes(b"")
    assert build_command(tmp_path / "my cats") == f"diffprobe data build folder '{tmp_path}/my cats' --out SHARDS"
    with pytest.raises(ShardError, match="no shard in .*(?s:.*)fix: diffprobe data build folder .* --out SHARDS"):
        find_shards(tmp_path)
    (tmp_path / "my cats" / "0.tar.zst").write_bytes(b"")
    assert build_command(tmp_path) is None


def test_shards_without_a_split_are_assigned_by_patterns() -> None:
    files = [f"{number:05d}.tar" for number in range(4)]
    found = splits_of(files, split="train", assigned={"00002.tar": "val", "0000[3-9].tar": "test"})
    assert list(found.values()) == ["train", "train", "val", "test"]
    assert splits_of(["train-0.tar", "train-1.tar"], assigned={"train-1.tar": "val"})["train-1.tar"] == "val"
    with pytest.raises(ShardError, match="val=9.tar matches no shard(?s:.*)00000.tar"):
        splits_of(files, split="train", assigned={"9.tar": "val"})
    with pytest.raises(ShardError, match="'00003.tar' is in 'val' and 'test'"):
        splits_of(files, split="train", assigned={"0000[23].tar": "val", "00003.tar": "test"})
    with pytest.raises(ShardError, match="2 shards without a split.*00000.tar, 00001.tar"):
        splits_of(files, assigned={"0000[23].tar": "val"})
