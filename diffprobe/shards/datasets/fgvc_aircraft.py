"""FGVC-Aircraft (Maji et al., 2013): aircraft by variant, family and manufacturer, with the authors' three splits.

Each photograph ends in a banner of 20 rows with its copyright, from which a model could
recognise the photographer; it is cut off, as the authors ask.
"""

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet
from diffprobe.shards.published_set import PublishedImage, WriteOptions, add_write_arguments, write_published
from diffprobe.shards.source_archive import FilePart, by_tail, open_source, read_text, require
from diffprobe.shards.tiny_archive import tiny_image, write_tar

HELP = "FGVC-Aircraft: aircraft by variant, family or manufacturer"
CARD = DatasetCard(
    name="fgvc_aircraft",
    licence="for non-commercial research only; FGVC-Aircraft, Maji, Kannala, Rahtu, Blaschko, Vedaldi, 2013",
    counts={"train": 3334, "val": 3333, "test": 3333},
    n_classes=100,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
"""What an aircraft is classified by -> the list of its names."""
BANNER = 20
"""Rows at the lower edge of each image that hold its copyright."""
_N_CLASSES = {"variant": 100, "family": 70, "manufacturer": 30}
_EXPECTED = "fgvc-aircraft-2013b.tar.gz, with data/images/*.jpg and data/images_variant_train.txt, variants.txt, ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive and the classes."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FILE", help="fgvc-aircraft-2013b.tar.gz, or its folder"
    )
    parser.add_argument(
        "--level", choices=tuple(LEVELS), default="variant", help="what the classes are (default: variant)"
    )
    add_write_arguments(parser)


def build(
    images: Path, out: Path, level: str = "variant", name: str | None = None, subset: bool = False,
    samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1, make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build.

    Classes are in the order of the authors' list; `variant`, `family` and `manufacturer` are attributes too. An image
    without its banner is encoded again with the tables of the original.

    Args:
        images: the archive, or the folder that it unpacks to.
        out: folder of the shards.
        level: variant, family or manufacturer; another one than variant is part of the set's name.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ConfigError for another level; ShardError for another archive, lists that do not agree, and what
        `write_published` refuses.
    """
    if level not in LEVELS:
        raise ConfigError(f"--level {level} is not offered; allowed: {', '.join(LEVELS)}.")
    members = open_source(images, out=out, expected=_EXPECTED)
    texts, files = by_tail(members, 1, ("txt",)), by_tail(members, 1, ("jpg",))
    lists = [f"images_{kind}_{split}.txt" for kind in LEVELS for split in ("train", "val", "test")]
    require(texts, [*lists, *LEVELS.values()], source=images, expected=_EXPECTED)
    classes = [line.strip() for line in read_text(texts[LEVELS[level]], LEVELS[level]).splitlines() if line.strip()]
    numbers = {class_name: label for label, class_name in enumerate(classes)}
    found: list[tuple[str, str, dict[str, str]]] = []
    for split in ("train", "val", "test"):
        values = {kind: _values(texts, f"images_{kind}_{split}.txt") for kind in LEVELS}
        for kind in LEVELS:
            if values[kind].keys() != values["variant"].keys():
                raise ShardError(f"images_{kind}_{split}.txt and images_variant_{split}.txt list other images.")
        found += [(image, split, {kind: values[kind][image] for kind in LEVELS}) for image in values["variant"]]
    if len({image for image, _, _ in found}) < len(found):
        raise ShardError("the lists of train, val and test share images.", f"expected: {_EXPECTED}")
    unknown = sorted({values[level] for _, _, values in found} - set(numbers))
    if unknown:
        raise ShardError(f"{LEVELS[level]} lacks '{unknown[0]}'.", f"expected: {_EXPECTED}")
    require(files, (f"{image}.jpg" for image, _, _ in found), source=images, expected=_EXPECTED)
    listed = [
        PublishedImage(
            key=image, name=f"{image}.jpg", split=split, label=numbers[values[level]], part=files[f"{image}.jpg"],
            change=without_banner, attributes=values,
        )
        for image, split, values in found
    ]  # fmt: skip
    usual = level == "variant"
    if not subset and not usual and len(classes) != _N_CLASSES[level]:
        raise ShardError(f"{LEVELS[level]} has {len(classes)} names, expected {_N_CLASSES[level]}.")
    options = WriteOptions(
        name=name or (None if usual else f"{CARD.name}-{level}"), subset=subset,
        samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs, make_bar=make_bar, announce=announce,
    )  # fmt: skip
    return write_published(
        out, listed, card=CARD, classes=classes, settings={"level": level}, options=options,
        n_classes=None if usual else len(classes),
    )  # fmt: skip


def _values(texts: Mapping[str, FilePart], file: str) -> dict[str, str]:
    """Read a list of `<image> <name with spaces>`. Raises: ShardError for other lines."""
    found = {}
    for number, line in enumerate(read_text(texts[file], file).splitlines(), 1):
        image, _, value = line.strip().partition(" ")
        if not value:
            raise ShardError(f"{file}, line {number}: '{line[:80]}'", "expected: <image> <name>")
        found[image] = value
    return found


def without_banner(data: bytes) -> bytes:
    """Return a JPEG without its lowest 20 rows, encoded with the tables and the subsampling of the original.

    Raises: ValueError for an image of at most 20 rows; Pillow's errors for what is no JPEG.
    """
    from PIL import Image, JpegImagePlugin

    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        width, height = image.size
        if height <= BANNER:
            raise ValueError(f"{height} rows, of which the banner takes {BANNER}")
        sampling = JpegImagePlugin.get_sampling(image)
        buffer = io.BytesIO()
        image.crop((0, 0, width, height - BANNER)).save(
            buffer, "JPEG", qtables=image.quantization, subsampling=max(sampling, 0)
        )
    return buffer.getvalue()


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write an archive of 9 images of two variants in three splits. Returns: arguments, and 9 samples."""
    root = "fgvc-aircraft-2013b/data"
    files = {f"{root}/{file}": b"" for file in LEVELS.values()}
    names = {
        "variant": ("707-320", "F-16A/B"),
        "family": ("Boeing 707", "F-16"),
        "manufacturer": ("Boeing", "Lockheed"),
    }
    for kind, values in names.items():
        files[f"{root}/{LEVELS[kind]}"] = "".join(f"{value}\n" for value in values).encode()
    for number in range(9):
        files[f"{root}/images/{number:07d}.jpg"] = tiny_image(number, size=(16, 32))
        split = ("train", "val", "test")[number % 3]
        for kind, values in names.items():
            line = f"{number:07d} {values[number // 3 % 2]}\n".encode()
            file = f"{root}/images_{kind}_{split}.txt"
            files[file] = files.get(file, b"") + line
    archive = write_tar(folder / "fgvc-aircraft-2013b.tar.gz", files)
    return {"images": archive, "subset": True, "name": CARD.name}, 9
