"""Published sets: the draw of val, the counts of the card, images of other formats, builds that continue."""

import dataclasses
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.published_set import (
    PublishedImage,
    WriteOptions,
    as_readable,
    choose,
    count_faults,
    draw_val,
    plan_shards,
    write_published,
)
from diffprobe.shards.source_archive import UNPACKED, FilePart, open_source
from diffprobe.shards.tiny_archive import tiny_image, write_tar

CARD = DatasetCard(name="toy", licence="CC0", counts={"train": 40, "test": 10}, n_classes=2)


def images(n: int = 50) -> list[PublishedImage]:
    return [
        PublishedImage(
            key=f"k{i}", name=f"{i}.jpg", split="test" if i % 5 == 4 else "train", label=i % 2,
            part=FilePart(path=Path("x")),
        )
        for i in range(n)
    ]  # fmt: skip


def test_val_is_a_share_of_each_class_of_train_whatever_the_order() -> None:
    drawn = draw_val(images(), share=0.2, seed=0)
    assert Counter((image.split, image.label) for image in drawn) == {
        ("train", 0): 16, ("val", 0): 4, ("test", 0): 5, ("train", 1): 16, ("val", 1): 4, ("test", 1): 5,
    }  # fmt: skip
    val = {image.key for image in drawn if image.split == "val"}
    again = draw_val(images()[::-1], share=0.2, seed=0)
    assert {image.key for image in again if image.split == "val"} == val
    assert {image.key for image in draw_val(images(), share=0.2, seed=1) if image.split == "val"} != val
    assert draw_val(images(), share=0, seed=0) == images()
    with pytest.raises(ConfigError, match="--val 1"):
        draw_val(images(), share=1, seed=0)


def test_a_class_keeps_an_image_in_train_and_gets_one_in_val() -> None:
    few = [dataclasses.replace(image, label=i) for i, image in enumerate(images(3)) for _ in range(1)]
    assert {image.split for image in draw_val(few, share=0.9, seed=0)} == {"train"}  # one image of each class
    pair = [dataclasses.replace(image, label=0) for image in images(2)]
    assert sorted(image.split for image in draw_val(pair, share=0.01, seed=0)) == ["train", "val"]


def test_more_images_of_a_class_are_chosen_from_those_chosen_before() -> None:
    def chosen(n: int) -> set[str]:
        moved = choose(images(), lambda _: n, to="train", seed=3, of="test")
        return {new.key for new, old in zip(moved, images(), strict=True) if new.split != old.split}

    assert chosen(2) < chosen(4) and len(chosen(4)) == 8


def test_counts_are_compared_with_the_card() -> None:
    assert count_faults({"train": 35, "val": 5, "test": 10}, 2, CARD) == []
    assert count_faults({"train": 39, "other": 1}, 3, CARD) == [
        "other: 1 images, expected 0", "test: 0 images, expected 10", "train: 39 images, expected 40",
        "3 classes, expected 2",
    ]  # fmt: skip
    own_val = dataclasses.replace(CARD, counts={**CARD.counts, "val": 5})
    assert count_faults({"train": 45, "test": 10}, 2, own_val) == [
        "train: 45 images, expected 40", "val: 0 images, expected 5",
    ]  # fmt: skip
    assert count_faults({"train": 1}, 7, dataclasses.replace(CARD, counts={})) == []


def test_images_of_other_formats_become_png_with_the_same_pixels() -> None:
    picture = Image.effect_noise((9, 7), 50).convert("RGB")
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        assert as_readable(buffer.getvalue()) == buffer.getvalue()
    for kind in ("BMP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        with Image.open(io.BytesIO(as_readable(buffer.getvalue()))) as found:
            assert found.format == "PNG" and found.tobytes() == Image.open(buffer).convert("RGB").tobytes()
    with pytest.raises(OSError):
        as_readable(b"<html>")


def test_shards_take_samples_by_hash() -> None:
    plan = plan_shards(images(), ["even", "odd"], 10)
    assert {shard.split("-")[0] for shard in plan} == {"train", "test"} and len(plan) > 3
    assert sorted(sample.key for samples in plan.values() for sample in samples) == sorted(i.key for i in images())
    assert plan == plan_shards(images()[::-1], ["even", "odd"], 10)


def source(tmp_path: Path, n: int = 50, broken: int | None = None) -> list[PublishedImage]:
    files = {f"{i}.jpg": b"\xff\xd8\xff" if i == broken else tiny_image(i) for i in range(n)}
    parts = open_source(write_tar(tmp_path / "x.tar.gz", files), out=tmp_path / "out", expected="")
    return [dataclasses.replace(image, part=parts[image.name]) for image in images(n)]


def test_other_counts_are_refused_or_named_a_subset(tmp_path: Path) -> None:
    found, out = source(tmp_path, 45), tmp_path / "out"
    with pytest.raises(ShardError, match="not 'toy' as it was released(?s:.*)train: 36 .*expected 40(?s:.*)--subset"):
        write_published(out, found, card=CARD, classes="ab", settings={}, options=WriteOptions())
    assert not list(out.glob("*.tar"))
    built = write_published(out, found, card=CARD, classes="ab", settings={}, options=WriteOptions(subset=True))
    assert built.name == "toy-subset" and built.n_samples("train") == 36
    with pytest.raises(ConfigError, match="--jobs 0"):
        write_published(out, found, card=CARD, classes="ab", settings={}, options=WriteOptions(jobs=0))


def test_a_build_with_an_unreadable_image_continues(tmp_path: Path) -> None:
    out, notes, found = tmp_path / "out", list[str](), source(tmp_path, broken=7)
    options = WriteOptions(samples_per_shard=10, announce=notes.append)
    with pytest.raises(ShardError, match="1 of 50 images cannot be read(?s:.*)7.jpg, sample 'k7'"):
        write_published(out, found, card=CARD, classes="ab", settings={}, options=options)
    finished = len(list(out.glob("*.tar")))
    assert finished and (out / UNPACKED).is_dir() and not (out / "index.json").exists()
    skipping = dataclasses.replace(options, on_error="skip")
    built = write_published(out, found, card=CARD, classes="ab", settings={}, options=skipping)
    assert sum(shard.n_samples for shard in built.shards) == 49 and not (out / UNPACKED).exists()
    assert "7.jpg" in (out / "left_out.txt").read_text()
    with pytest.raises(ShardError, match="other settings(?s:.*)seed"):
        write_published(
            out, source(tmp_path, broken=7), card=CARD, classes="ab", settings={"seed": 1}, options=skipping
        )
