"""Describable Textures Dataset (Cimpoi et al., CVPR 2014): 47 kinds of texture, with ten partitions by the authors."""

import argparse
from pathlib import Path

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet
from diffprobe.shards.published_set import (
    PublishedImage,
    WriteOptions,
    add_write_arguments,
    as_readable,
    write_published,
)
from diffprobe.shards.source_archive import by_tail, open_source, read_text, require
from diffprobe.shards.tiny_archive import tiny_image, write_tar

HELP = "Describable Textures (DTD): 47 kinds of texture, one of ten partitions"
CARD = DatasetCard(
    name="dtd",
    licence="for research only; Describable Textures Dataset, Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi, 2014",
    counts={"train": 1880, "val": 1880, "test": 1880},
    n_classes=47,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_EXPECTED = "dtd-r1.0.1.tar.gz of DTD, with dtd/images/<texture>/*.jpg and dtd/labels/train1.txt to test10.txt"
_PARTITIONS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive and the partition."""
    parser.add_argument("--images", type=Path, required=True, metavar="FILE", help="dtd-r1.0.1.tar.gz, or its folder")
    parser.add_argument(
        "--partition", type=int, default=1, metavar="N", help="of the authors' ten partitions (default: 1)"
    )
    add_write_arguments(parser)


def build(
    images: Path, out: Path, partition: int = 1, name: str | None = None, subset: bool = False,
    samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1, make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build. Classes are in alphabetical order.

    Args:
        images: the archive, or the folder that it unpacks to.
        out: folder of the shards.
        partition: 1 to 10; another one than 1 is part of the set's name.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ConfigError for another partition; ShardError for another archive, an image in two lists of the partition,
        and what `write_published` refuses.
    """
    if not 1 <= partition <= _PARTITIONS:
        raise ConfigError(f"--partition {partition} is out of range; allowed: 1 to {_PARTITIONS}.")
    members = open_source(images, out=out, expected=_EXPECTED)
    texts, files = by_tail(members, 1, ("txt",)), by_tail(members, 2, ("jpg",))
    lists = {split: f"{split}{partition}.txt" for split in ("train", "val", "test")}
    require(texts, lists.values(), source=images, expected=_EXPECTED)
    splits: dict[str, str] = {}
    for split, file in lists.items():
        for line in read_text(texts[file], file).split():
            if splits.setdefault(line, split) != split:
                raise ShardError(f"'{line}' is in {lists[splits[line]]} and in {file}.", f"expected: {_EXPECTED}")
    require(files, splits, source=images, expected=_EXPECTED)
    classes = sorted({file.split("/")[0] for file in splits})
    numbers = {class_name: label for label, class_name in enumerate(classes)}
    listed = [
        PublishedImage(
            key=file.rpartition(".")[0], name=file, split=split, label=numbers[file.split("/")[0]],
            part=files[file], change=as_readable,
        )
        for file, split in splits.items()
    ]  # fmt: skip
    options = WriteOptions(
        name=name or (None if partition == 1 else f"{CARD.name}-{partition}"), subset=subset,
        samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs, make_bar=make_bar, announce=announce,
    )  # fmt: skip
    return write_published(out, listed, card=CARD, classes=classes, settings={"partition": partition}, options=options)


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write an archive of two textures of 6 images with two partitions. Returns: arguments, and 12 samples."""
    files = {}
    lines: dict[str, list[str]] = {}
    for number in range(12):
        texture = ("banded", "zigzagged")[number % 2]
        image = f"{texture}/{texture}_{number:04d}.jpg"
        files[f"dtd/images/{image}"] = tiny_image(number)
        for partition in (1, 2):
            split = ("train", "val", "test")[(number // 2 + partition) % 3]
            lines.setdefault(f"dtd/labels/{split}{partition}.txt", []).append(image)
    lists = {file: "".join(f"{line}\n" for line in found).encode() for file, found in lines.items()}
    archive = write_tar(folder / "dtd-r1.0.1.tar.gz", {**files, **lists})
    return {"images": archive, "subset": True, "name": CARD.name}, 12
