"""Caltech-101 (Li, Andreeto, Ranzato, Perona): photographs of 101 kinds of objects.

The authors give no splits. As in the papers, a number of images of each class, drawn by seed, are for training (30 by
default) and the others for test; val is drawn from those for training.
"""

import argparse
from pathlib import Path

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet
from diffprobe.shards.published_set import (
    PublishedImage,
    WriteOptions,
    add_val_arguments,
    add_write_arguments,
    as_readable,
    choose,
    draw_val,
    write_published,
)
from diffprobe.shards.source_archive import by_tail, open_source
from diffprobe.shards.tiny_archive import tiny_image, write_tar

HELP = "Caltech-101: photographs of 101 kinds of objects, 30 of each for training"
CARD = DatasetCard(
    name="caltech101",
    licence="CC BY 4.0; Caltech-101, Li, Andreeto, Ranzato, Perona",
    counts={"train": 3030, "test": 5647},
    n_classes=101,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
BACKGROUND = "BACKGROUND_Google"
"""Folder of images that are of none of the classes."""
_EXPECTED = "101_ObjectCategories.tar.gz of Caltech-101, with 101_ObjectCategories/<class>/image_<number>.jpg"
_DEFAULT = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive and the splits."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FILE", help="101_ObjectCategories.tar.gz, or its folder"
    )
    parser.add_argument(
        "--train-per-class", type=int, default=_DEFAULT, metavar="N", help="for training, val included (default: 30)"
    )
    parser.add_argument(
        "--test-per-class", type=int, metavar="N", help="most test images of a class (default: all that are left)"
    )
    parser.add_argument("--background", action="store_true", help=f"keep {BACKGROUND} as a further class")
    add_val_arguments(parser)
    add_write_arguments(parser)


def build(
    images: Path, out: Path, train_per_class: int = _DEFAULT, test_per_class: int | None = None,
    background: bool = False, val: float = 0.1, seed: int = 0, name: str | None = None, subset: bool = False,
    samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1, make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build. Classes are in the alphabetical order of their folders.

    Args:
        images: the archive, or the folder that it unpacks to.
        out: folder of the shards.
        train_per_class: images of each class for training; val is a part of them.
        test_per_class: most test images of a class; None keeps all others.
        background: keep the images that are of none of the classes, as one more class.
        val: see `published_set.draw_val`.
        seed: of the draws of train, test and val.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ConfigError for numbers out of range; ShardError for another archive, a class with too few images, and
        what `write_published` refuses.
    """
    if train_per_class < 1 or (test_per_class is not None and test_per_class < 1):
        raise ConfigError(
            f"--train-per-class {train_per_class}, --test-per-class {test_per_class}: allowed are integers from 1."
        )
    files = by_tail(open_source(images, out=out, expected=_EXPECTED), 2, ("jpg",))
    files = {file: part for file, part in files.items() if background or file.split("/")[0] != BACKGROUND}
    classes = sorted({file.split("/")[0] for file in files})
    if not classes:
        raise ShardError(f"'{images}' has no image in a class folder.", f"expected: {_EXPECTED}")
    numbers = {class_name: label for label, class_name in enumerate(classes)}
    listed = [
        PublishedImage(
            key=file.rpartition(".")[0], name=file, split="test", label=numbers[file.split("/")[0]], part=part,
            change=as_readable,
        )
        for file, part in sorted(files.items())
    ]  # fmt: skip
    if not subset and not background and len(listed) != (total := sum(CARD.counts.values())):
        raise ShardError(
            f"'{images}' has {len(listed):,} images of {len(classes)} classes, expected {total:,} of {CARD.n_classes}.",
            fix="check the archive; or --subset, for a part of the set",
        )
    for class_name, label in numbers.items():
        n = sum(image.label == label for image in listed)
        if n <= train_per_class:
            raise ShardError(
                f"class '{class_name}' has {n} images; with {train_per_class} for training none is left for test.",
                fix=f"--train-per-class {max(1, n - 1)}, or fewer",
            )
    listed = choose(listed, lambda n: train_per_class, to="train", seed=seed, of="test")
    if test_per_class is not None:
        cap = test_per_class
        listed = choose(listed, lambda n: max(0, n - cap), to="left out", seed=seed, of="test")
        listed = [image for image in listed if image.split != "left out"]
    usual = (train_per_class, test_per_class, background) == (_DEFAULT, None, False)
    options = WriteOptions(
        name=name or (None if usual else _name(train_per_class, test_per_class, background)),
        subset=subset or not usual, samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs,
        make_bar=make_bar, announce=announce,
    )  # fmt: skip
    settings = {
        "background": background, "seed": seed, "test_per_class": test_per_class, "train_per_class": train_per_class,
        "val": val,
    }  # fmt: skip
    return write_published(
        out, draw_val(listed, share=val, seed=seed), card=CARD, classes=classes, settings=settings, options=options
    )


def _name(train_per_class: int, test_per_class: int | None, background: bool) -> str:
    """Return the name of a set with other splits than the card's.

    >>> _name(15, 50, False)
    'caltech101-train15-test50'
    """
    parts = [CARD.name, f"train{train_per_class}", *([f"test{test_per_class}"] if test_per_class else [])]
    return "-".join([*parts, *(["background"] if background else [])])


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write an archive of two classes of 8 images and the background. Returns: arguments, and 16 samples."""
    files = {}
    for number in range(24):
        class_name = ("accordion", "Faces_easy", BACKGROUND)[number % 3]
        files[f"101_ObjectCategories/{class_name}/image_{number // 3 + 1:04d}.jpg"] = tiny_image(number)
    files[f"101_ObjectCategories/{BACKGROUND}/tmp"] = b"x"
    archive = write_tar(folder / "101_ObjectCategories.tar.gz", files)
    return {"images": archive, "train_per_class": 5, "val": 0.2, "subset": True, "name": CARD.name}, 16
