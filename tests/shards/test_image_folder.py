"""Image folders: what is found, and the layouts that are refused with the files they have."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.image_folder import find_images


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (root / name).write_bytes(b"x")
        else:
            (root / name).mkdir()
    return root


def test_classes_by_subfolder(tmp_path: Path) -> None:
    found = find_images(
        make(tmp_path, "cat/1.JPG", "cat/deep/2.png", "dog/a.b.webp", ".git/x.jpg", "cat/.hidden.jpg", "cat/note.txt")
    )
    assert [(i.name, i.key, i.class_name, i.split) for i in found.images] == [
        ("cat/1.JPG", "cat/1", "cat", None),
        ("cat/deep/2.png", "cat/deep/2", "cat", None),
        ("dog/a.b.webp", "dog/a_b", "dog", None),
    ]
    assert found.others == {"txt": 1} and found.splits() == ()


def test_splits_by_public_names(tmp_path: Path) -> None:
    found = find_images(make(tmp_path, "Training/cat/1.jpg", "valid/cat/1.jpg", "test/cat/1.jpg"))
    assert [(i.key, i.split, i.class_name) for i in found.images] == [
        ("Training/cat/1", "train", "cat"), ("test/cat/1", "test", "cat"), ("valid/cat/1", "val", "cat"),
    ]  # fmt: skip
    assert found.splits() == ("test", "train", "val")


def test_images_without_classes_and_a_class_that_ends_like_a_split(tmp_path: Path) -> None:
    assert {i.class_name for i in find_images(make(tmp_path / "a", "1.jpg", "2.jpg")).images} == {None}
    found = find_images(make(tmp_path / "b", "bullet train/1.jpg", "ship/1.jpg"))
    assert [i.class_name for i in found.images] == ["bullet train", "ship"] and found.splits() == ()


def test_files_that_differ_in_their_extension_have_two_keys(tmp_path: Path) -> None:
    found = find_images(make(tmp_path, "a/1.jpg", "a/1.png", "a/2.png"))
    assert [i.key for i in found.images] == ["a/1_jpg", "a/1_png", "a/2"]


def test_a_format_that_is_not_read_is_listed(tmp_path: Path) -> None:
    assert find_images(make(tmp_path, "a/1.jpg", "a/2.gif")).unread == (
        "a/2.gif: format 'gif' is not read (JPEG, PNG, WebP are)",
    )


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ((), "no image in .*(?s:.*)found: nothing else"),
        (("a/1.txt", "a/2.tif"), r"no image in (?s:.*)found: 1 \.txt(?s:.*)a/2.tif"),
        (("train/cat/1.jpg", "cat/1.jpg"), "folders of splits .train. beside others: cat"),
        (("train/cat/1.jpg", "1.jpg"), "beside others: 1.jpg"),
        (("val/cat/1.jpg", "dev/cat/1.jpg"), "1 splits .*(?s:.*)val: dev, val"),
        (("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg"), "lack class folders(?s:.*)test: without dog"),
        (("train/cat/1.jpg", "test/cat/1.jpg", "test/dog/"), "class folders .* have no image(?s:.*)test/dog"),
        (("cat/1.jpg", "dog/"), "class folders .* have no image(?s:.*)dog"),
        (("cat/1.jpg", "2.jpg"), "outside of the class folders(?s:.*)2.jpg"),
        (("a/b.c.jpg", "a/b_c.jpg", "a/b_c.png", "a/b_c_jpg.png"), "keys .*several images"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, names: tuple[str, ...], facts: str) -> None:
    with pytest.raises(ShardError, match=facts):
        find_images(make(tmp_path, *names))


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="not found"):
        find_images(tmp_path / "none")
    with pytest.raises(ShardError, match="not a folder"):
        find_images(make(tmp_path, "1.jpg") / "1.jpg")
