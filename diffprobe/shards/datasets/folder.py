"""Image folders of users: class subfolders, optional split folders, captions and attributes from a table.

Images are copied byte for byte. Reading the folder is in `shards/image_folder.py`, the table in
`shards/annotation_table.py`, writing and continuing in `shards/resumable.py`.
"""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.annotation_table import Record, match, read_table
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.hash_split import check_fractions, hash_fraction, split_by_hash
from diffprobe.shards.image_folder import FoundImage, find_images
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.resumable import PlannedSample, list_left_out, write_planned
from diffprobe.shards.shard_names import IMAGE_ENDINGS, more_lines

HELP = "your own image folder: class subfolders, captions and attributes from a table"
CARD = DatasetCard(name="folder", licence="not stated", disjoint_by={"val": "key", "test": "key"})
_SHARE = 0.1
"""Share of val and of test where the folder has no splits."""
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder, its table and its splits."""
    parser.add_argument("dir", type=Path, metavar="DIR", help="DIR/<class>/*.jpg, or DIR/<split>/<class>/*.jpg")
    parser.add_argument("--name", help="name of the set in results (default: that of DIR)")
    parser.add_argument("--licence", default=CARD.licence, help="terms of the images, with attribution where required")
    parser.add_argument("--table", type=Path, metavar="FILE", help="CSV or JSONL: file name, caption, attributes")
    parser.add_argument("--file-column", metavar="COLUMN", help="the column of file names (default: file_name, ...)")
    parser.add_argument("--group", metavar="COLUMN", help="images with one value of this column stay in one split")
    parser.add_argument(
        "--val", type=float, metavar="F", help="share of val, by hash (default 0.1 without split folders)"
    )
    parser.add_argument("--test", type=float, metavar="F", help="share of test, by hash (default as --val)")
    parser.add_argument(
        "--classes", choices=("equal", "union"), default="equal",
        help="union: accept class folders that not all split folders have",
    )  # fmt: skip
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="images per shard, about")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip: leave out and list")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes")


def build(
    dir: Path,
    out: Path,
    name: str | None = None,
    licence: str = CARD.licence,
    table: Path | None = None,
    file_column: str | None = None,
    group: str | None = None,
    val: float | None = None,
    test: float | None = None,
    classes: str = "equal",
    samples_per_shard: int = 1000,
    on_error: str = "raise",
    jobs: int = 1,
    make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:
    """Build the shard set of an image folder, or continue an interrupted build.

    The samples of a split are distributed to shards, and ordered in them, by a hash of their key, so that the first
    shards are a random sample.

    Args:
        dir: the folder, see `image_folder.find_images`.
        out: folder of the shards and their index; made if missing.
        name: name of the set; that of the folder if None.
        licence: terms of the images.
        table: captions, classes and attributes, see `annotation_table.read_table`.
        file_column: column of the table that names the files, relative to `dir`.
        group: attribute of the table whose values are not shared by splits; the key of each sample if None.
        val, test: shares of the splits that the folder does not name; they are taken from all images, or from
            the folder of train. None is 0.1 if the folder names no split, and otherwise no further split.
        classes: "equal" refuses class folders that not all split folders have, which are often misspelt or misplaced;
            "union" accepts them.
        samples_per_shard: samples per shard, on average.
        on_error: "raise" lists what is wrong and writes no index; "skip" leaves those images out and lists them in
            `out/left_out.txt`.
        jobs: processes that read images and write shards.
        make_bar: opens a progress bar.
        announce: receives notes for the user.

    Raises: ShardError for an unsuitable folder or table, unreadable images, files of the table that are missing, images
        that the table lacks, a split without an image, and shards of other inputs in `out`; ConfigError for shares out
        of range and an unknown group.
    """
    say = announce or (lambda line: None)
    if samples_per_shard < 1 or jobs < 1:
        raise ConfigError(f"--samples-per-shard {samples_per_shard}, --jobs {jobs}: allowed are integers from 1.")
    if out.resolve() == dir.resolve() or dir.resolve() in out.resolve().parents:
        raise ShardError(f"--out '{out}' is in the image folder '{dir}'.", fix="a folder beside it")
    found = find_images(dir, ignored=[table] if table else [], same_classes=classes == "equal")
    if found.others:
        counts = ", ".join(f"{n} .{ending}" for ending, n in sorted(found.others.items()))
        say(f"not images, and not read: {counts}")
    faults = [*found.unread]
    records: dict[str, Record] = {image.name: {} for image in found.images}
    if table is not None:
        rows = read_table(table, file_column=file_column)
        lacking, missing = match(list(records), rows, table)
        faults += [*lacking, *missing]
        records = {name: rows[name] for name in records if name in rows}
    elif group is not None or file_column is not None:
        raise ConfigError(f"--{'group' if group is not None else 'file-column'} names a column of --table FILE.")
    if faults and on_error == "raise":
        raise ShardError(
            f"'{dir}' has {len(faults)} files that cannot be used.", *faults[:_SHOWN], *more_lines(faults, _SHOWN),
            fix="correct them (names in a table are relative to DIR), or leave them out: --on-error skip",
        )  # fmt: skip
    images = [image for image in found.images if image.name in records]
    if not images:
        raise ShardError(f"'{table}' names no image of '{dir}'.", f"the folder has: {found.images[0].name}")
    records = {image.name: _with_class(image, records[image.name]) for image in images}
    groups = {image.name: _group_of(image, records[image.name], group) for image in images}
    shares = _shares(found.splits(), val, test)
    splits = _assign(images, groups, shares, group)
    settings = {"group": group, **shares, "samples_per_shard": samples_per_shard}
    plan = _plan(images, records, splits, samples_per_shard)
    left_out = write_planned(
        out, plan, settings=settings, on_error=on_error, jobs=jobs, make_bar=make_bar, announce=say
    )
    shard_set = build_index(
        out, name=name or dir.resolve().name, licence=licence, on_shard=lambda file: say(f"indexing {file}"),
        grouped_by=group,
    )  # fmt: skip
    list_left_out(out, [*faults, *left_out.values()], say)
    _note_classes(shard_set, images, splits, left_out, say)
    return shard_set


def _with_class(image: FoundImage, record: Record) -> Record:
    """Add the class of the folder. Raises: ShardError if the table has another one."""
    by_folder, by_table = image.class_name, record.get("class_name")
    if by_folder is not None and by_table is not None and by_folder != by_table:
        raise ShardError(f"{image.name}: its class is '{by_folder}' by its folder and '{by_table}' in the table.")
    return record if by_folder is None else {**record, "class_name": by_folder}


def _group_of(image: FoundImage, record: Record, group: str | None) -> str:
    attributes = record.get("attributes", {})
    assert isinstance(attributes, dict)
    return image.key if group is None else str(attributes.get(group, ""))


def _shares(named: Sequence[str], val: float | None, test: float | None) -> dict[str, float]:
    """Return the shares of val and test that are drawn by hash. Raises: ConfigError."""
    default = 0.0 if named else _SHARE
    shares = {"val": default if val is None else val, "test": default if test is None else test}
    check_fractions(**shares)
    for split, share in shares.items():
        if share and split in named:
            raise ConfigError(f"--{split} {share}: the folder names the images of split '{split}' already.")
    if any(shares.values()) and named and "train" not in named:
        raise ConfigError(f"--val and --test take images from train, which is not a folder: {', '.join(named)}.")
    return shares


def _assign(
    images: Sequence[FoundImage], groups: Mapping[str, str], shares: Mapping[str, float], group: str | None
) -> dict[str, str]:
    """Return name -> split. Raises: ConfigError for an unknown group; ShardError, see `build`."""
    if group is not None:
        without = [image.name for image in images if not groups[image.name]]
        if len(without) == len(images):
            raise ConfigError(f"--group {group}: the table has no such attribute, or no image has a value of it.")
        if without:
            raise ShardError(
                f"{len(without)} images have no value of the group '{group}'.", *without[:_SHOWN],
                *more_lines(without, _SHOWN), fix="give each its value in the table",
            )  # fmt: skip
    splits = {}
    for image in images:
        drawn = split_by_hash(groups[image.name], val=shares["val"], test=shares["test"])
        splits[image.name] = drawn if image.split in (None, "train") else image.split
    homes: dict[str, set[str]] = {}
    for name, split in splits.items():
        homes.setdefault(groups[name], set()).add(split)
    shared = [f"{value}: {', '.join(sorted(found))}" for value, found in homes.items() if len(found) > 1]
    if shared:
        raise ShardError(f"{len(shared)} values of '{group}' are in several splits.", *sorted(shared)[:_SHOWN],
                         fix="move the images of each into one split folder")  # fmt: skip
    for split, share in {"train": 1 - sum(shares.values()), **shares}.items():
        if share and split not in splits.values():
            if split == "train" and not any(shares.values()):
                continue  # the folder names the splits
            raise ShardError(
                f"no image falls into split '{split}' ({len(set(groups.values()))} "
                f"{'groups' if group else 'images'}, share {share:g}).",
                fix=f"another share, for example --{'val' if split == 'train' else split} "
                f"{min(0.4, 2 * share) if split != 'train' else 0.1:g}, or folders named train, val, test",
            )
    return splits


def _plan(
    images: Sequence[FoundImage], records: Mapping[str, Record], splits: Mapping[str, str], samples_per_shard: int
) -> dict[str, list[PlannedSample]]:
    """Return shard -> its samples. By hash of the key: a file more or less changes one shard, not all later ones."""
    counts: dict[str, int] = {}
    for split in splits.values():
        counts[split] = counts.get(split, 0) + 1
    plan: dict[str, list[PlannedSample]] = {}
    for image in sorted(images, key=lambda image: hash_fraction("order", image.key)):
        split = splits[image.name]
        number = int(hash_fraction("shard", image.key) * math.ceil(counts[split] / samples_per_shard))
        record = records[image.name]
        sample = PlannedSample(
            key=image.key,
            path=image.path,
            name=image.name,
            field=IMAGE_ENDINGS[image.path.suffix[1:].lower()],
            record=json.dumps(record, ensure_ascii=False, sort_keys=True) if record else "",
        )
        plan.setdefault(f"{split}-{number:04d}.tar", []).append(sample)
    return dict(sorted(plan.items()))


def _note_classes(
    shard_set: ShardSet, images: Sequence[FoundImage], splits: Mapping[str, str], left_out: Mapping[str, str],
    say: Announce,
) -> None:  # fmt: skip
    """Name the splits that are missing, and the classes that a draw by hash left a split without."""
    absent = [split for split in ("train", "val", "test") if split not in shard_set.splits()]
    for split in absent:
        at_run = "; or runs cut it out of train: data.val_fraction=0.1" if split == "val" else ""
        need = f"runs need one; build with --{split} 0.1{at_run}"
        say(f"no split '{split}'" + (f": {need}" if split != "train" else ""))
    classes: dict[str, set[str]] = {}
    for image in images:
        if image.class_name is not None and image.name not in left_out:
            classes.setdefault(splits[image.name], set()).add(image.class_name)
    everything = set().union(*classes.values())
    for split, found in sorted(classes.items()):
        if lacking := sorted(everything - found):
            say(f"{len(lacking)} classes have no image in {split}: {', '.join(lacking[:_SHOWN])}")


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write 40 images of two classes and their table. Returns: the arguments of `build`, and 40 samples."""
    from PIL import Image

    rows = []
    for number in range(40):
        path = folder / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * number, 0, 9)).save(path)
        rows.append({"file_name": path.relative_to(folder / "images").as_posix(), "text": f"number {number}"})
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"dir": folder / "images", "table": folder / "table.jsonl", "name": CARD.name}, 40
