"""Turn the images of a published data set into shards: its splits, a validation split by seed, and its counts.

The files in `datasets/` read what the authors distribute (`shards/source_archive.py`) and list the images; writing and
continuing is in `shards/resumable.py`.
"""

import argparse
import dataclasses
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.hash_split import check_fractions, hash_fraction
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.resumable import FurtherFile, PlannedSample, list_left_out, write_planned
from diffprobe.shards.shared_groups import SINGLE_SAMPLES
from diffprobe.shards.source_archive import UNPACKED, FilePart

_READABLE = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
"""First bytes of images that shards may hold: JPEG, PNG, WebP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedImage:
    """One image of a published data set.

    Attributes:
        key: identity of the sample.
        name: what messages call the image: its name in the archive.
        split: train, val or test.
        label: number of its class.
        part: its bytes in the source.
        field: extension of the image in the sample.
        change: makes the image from these bytes, see `PlannedSample.change`.
        attributes: name -> value.
        further: files beside the image.
    """

    key: str
    name: str
    split: str
    label: int
    part: FilePart
    field: str = "jpg"
    change: Callable[[bytes], bytes] | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    further: tuple[FurtherFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How shards are written; the options that `add_write_arguments` declares.

    Attributes:
        samples_per_shard: images per shard, on average.
        on_error: "raise" lists images that cannot be read and writes no index; "skip" leaves them out and lists them.
        jobs: processes.
        subset: accept other numbers of images than the released set has; the set is then called `<name>-subset`.
        name: name of the set; that of its card if None.
        make_bar: opens a progress bar.
        announce: receives notes for the user.
    """

    samples_per_shard: int = 1000
    on_error: str = "raise"
    jobs: int = 1
    subset: bool = False
    name: str | None = None
    make_bar: MakeBar | None = None
    announce: Announce | None = None


def add_write_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that all published sets have."""
    parser.add_argument("--name", help="name of the set in results (default: that of the data set)")
    parser.add_argument(
        "--subset", action="store_true", help="accept another number of images than the released set has"
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="images per shard, about")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip: leave out and list")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes")


def add_val_arguments(parser: argparse.ArgumentParser, *, share: float = 0.1) -> None:
    """Declare the validation split of a set whose authors give none."""
    parser.add_argument(
        "--val", type=float, default=share, metavar="F",
        help=f"share of each class of train that becomes val (default: {share:g}; 0: no val)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw of val (default: 0)")


def draw_val(images: Sequence[PublishedImage], *, share: float, seed: int) -> list[PublishedImage]:
    """Move a share of each class of train to val, by a hash of the seed and the key.

    Of a class with n training images, round(share x n) are moved, at least one, and never all of them.

    Args:
        share: from 0, which moves none, to below 1.
        seed: another one draws other images.

    Raises: ConfigError for a share out of range.
    """
    check_fractions(val=share, test=0.0)
    if share == 0:
        return list(images)
    return choose(images, lambda n: min(max(1, round(share * n)), n - 1), to="val", seed=seed)


def choose(
    images: Sequence[PublishedImage], number: Callable[[int], int], *, to: str, seed: int, of: str = "train"
) -> list[PublishedImage]:
    """Move images of each class from one split to another, those with the least hash of the seed and the key.

    Args:
        number: number of images of a class in `of` -> how many of them are moved.
        to, of: names of the splits.
        seed: of the hash.
    """
    by_class: dict[int, list[str]] = {}
    for image in images:
        if image.split == of:
            by_class.setdefault(image.label, []).append(image.key)
    moved: set[str] = set()
    for keys in by_class.values():
        keys.sort(key=lambda key: (hash_fraction(f"{to} {seed}", key), key))
        moved.update(keys[: number(len(keys))])
    return [replace(image, split=to) if image.key in moved else image for image in images]


def as_readable(data: bytes) -> bytes:
    """Return JPEG, PNG and WebP bytes as they are, and an image of another format as PNG, whatever its extension.

    Some archives have GIF and BMP images whose names end in `.jpg`. Raises: Pillow's errors for other files.
    """
    if data.startswith(_READABLE):
        return data
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("GIF", "BMP", "TIFF")) as image:
        buffer = io.BytesIO()
        image.convert("RGBA" if image.info.get("transparency") is not None else "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def write_published(
    out: Path,
    images: Sequence[PublishedImage],
    *,
    card: DatasetCard,
    classes: Sequence[str],
    settings: Mapping[str, object],
    options: WriteOptions,
    counts: Mapping[str, int] | None = None,
    n_classes: int | None = None,
    number_duplicates: bool = False,
) -> ShardSet:
    """Write the shards and the index of a published set, or continue an interrupted build.

    The samples of a split are distributed to shards, and ordered in them, by a hash of their key.

    Args:
        out: folder of the shards; made if missing.
        images: all images.
        card: of the set; the number of images and classes has to be that of the card, unless `options.subset`.
        classes: class names by label.
        settings: what decides the splits and the images, to tell another build in `out` apart.
        options: see `WriteOptions`.
        counts, n_classes: numbers to expect in place of those of the card, for another choice of splits or classes.
        number_duplicates: see `build_index`.

    Raises: ConfigError for options out of range; ShardError for other counts than those of the card, an image that
        cannot be read, and shards of other inputs in `out`.
    """
    if options.samples_per_shard < 1 or options.jobs < 1:
        raise ConfigError(
            f"--samples-per-shard {options.samples_per_shard}, --jobs {options.jobs}: allowed are integers from 1."
        )
    say = options.announce or (lambda line: None)
    if not images:
        raise ShardError(f"the sources of '{card.name}' have no image.")
    expected = replace(card, counts=counts or card.counts, n_classes=n_classes or card.n_classes)
    differing = count_faults(Counter(image.split for image in images), len(classes), expected)
    if differing and not options.subset:
        raise ShardError(
            f"this is not '{card.name}' as it was released.", *differing,
            fix="check the archives; or --subset, for a part of the set",
        )  # fmt: skip
    for line in differing:
        say(f"a part of the set: {line}")
    plan = plan_shards(images, classes, options.samples_per_shard)
    settings = {**settings, "samples_per_shard": options.samples_per_shard}
    left_out = write_planned(
        out, plan, settings=settings, on_error=options.on_error, jobs=options.jobs, make_bar=options.make_bar,
        announce=say,
    )  # fmt: skip
    shutil.rmtree(out / UNPACKED, ignore_errors=True)
    shard_set = build_index(
        out, name=options.name or card.name + "-subset" * bool(differing), licence=card.licence,
        grouped_by=SINGLE_SAMPLES, on_shard=lambda file: say(f"indexing {file}"), number_duplicates=number_duplicates,
    )  # fmt: skip
    list_left_out(out, list(left_out.values()), say)
    say(", ".join(f"{split}: {shard_set.n_samples(split):,}" for split in shard_set.splits()))
    if "val" not in shard_set.splits():
        say("no split 'val': runs cut one out of train with data.val_fraction=0.1")
    return shard_set


def count_faults(counts: Mapping[str, int], n_classes: int, card: DatasetCard) -> list[str]:
    """Compare counts with those of a card, a line per difference.

    A validation split that the card lacks counts as a part of train. A card without counts is not compared.

    >>> card = DatasetCard(name="x", licence="y", counts={"train": 10, "test": 5}, n_classes=2)
    >>> count_faults({"train": 9, "val": 1, "test": 4}, 2, card)
    ['test: 4 images, expected 5']
    """
    if not card.counts:
        return []
    found = dict(counts)
    if "val" not in card.counts and "val" in found:
        found["train"] = found.get("train", 0) + found.pop("val")
    lines = [
        f"{split}: {found.get(split, 0):,} images, expected {card.counts.get(split, 0):,}"
        for split in sorted({*found, *card.counts})
        if found.get(split, 0) != card.counts.get(split, 0)
    ]
    if card.n_classes is not None and n_classes != card.n_classes:
        lines.append(f"{n_classes:,} classes, expected {card.n_classes:,}")
    return lines


def plan_shards(
    images: Iterable[PublishedImage], classes: Sequence[str], samples_per_shard: int
) -> dict[str, list[PlannedSample]]:
    """Return shard -> its samples, by a hash of the key, so that the first shards are a random sample."""
    images = list(images)
    counts = Counter(image.split for image in images)
    plan: dict[str, list[PlannedSample]] = {}
    for image in sorted(images, key=lambda image: (hash_fraction("order", image.key), image.key)):
        n_shards = math.ceil(counts[image.split] / samples_per_shard)
        shard = f"{image.split}-{int(hash_fraction('shard', image.key) * n_shards):04d}.tar"
        record: dict[str, object] = {"label": image.label, "class_name": classes[image.label]}
        if image.attributes:
            record["attributes"] = dict(image.attributes)
        sample = PlannedSample(
            key=image.key, path=image.part.path, name=image.name, field=image.field,
            record=json.dumps(record, ensure_ascii=False, sort_keys=True), offset=image.part.offset,
            n_bytes=image.part.n_bytes, change=image.change, further=image.further,
        )  # fmt: skip
        plan.setdefault(shard, []).append(sample)
    return dict(sorted(plan.items()))
