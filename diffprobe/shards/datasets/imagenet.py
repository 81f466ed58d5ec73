"""ImageNet-1k (ILSVRC 2012): 1,000 classes, from the tars as they are distributed or from class folders.

The labels of the official test set are not published. As in the papers, the official validation images are for test
here; val is drawn from train by seed. The tars are read in place: a tar of tars needs no room to unpack.
"""

import argparse
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
    draw_val,
    write_published,
)
from diffprobe.shards.source_archive import FilePart, by_tail, open_inner, open_source, read_small, read_text, require
from diffprobe.shards.tiny_archive import tar_bytes, tiny_image, write_tar

HELP = "ImageNet-1k (ILSVRC 2012): 1,000 classes, from the tars or class folders"
CARD = DatasetCard(
    name="imagenet",
    licence="for non-commercial research and education under the terms of ImageNet; ILSVRC 2012, Russakovsky et al.",
    counts={"train": 1_281_167, "test": 50_000},
    n_classes=1000,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_TRAIN = "ILSVRC2012_img_train.tar (a tar of 1,000 tars n<number>.tar), or a folder of folders n<number>/"
_VAL = "ILSVRC2012_img_val.tar with ILSVRC2012_val_<number>.JPEG, or a folder of folders n<number>/"
_KIT = "ILSVRC2012_devkit_t12.tar.gz, with data/meta.mat and data/ILSVRC2012_validation_ground_truth.txt"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_WNID = re.compile(r"n\d{8}")
_ENDINGS = ("jpeg", "jpg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archives."""
    parser.add_argument(
        "--train-images", type=Path, required=True, metavar="FILE", help="ILSVRC2012_img_train.tar, or class folders"
    )
    parser.add_argument(
        "--val-images", type=Path, required=True, metavar="FILE",
        help="ILSVRC2012_img_val.tar, or class folders; it becomes the split test",
    )  # fmt: skip
    parser.add_argument(
        "--devkit", type=Path, metavar="FILE",
        help="ILSVRC2012_devkit_t12.tar.gz: class names, and the labels of the validation tar",
    )  # fmt: skip
    add_val_arguments(parser, share=0.01)
    add_write_arguments(parser)


def build(
    train_images: Path, val_images: Path, out: Path, devkit: Path | None = None, val: float = 0.01, seed: int = 0,
    name: str | None = None, subset: bool = False, samples_per_shard: int = 1000, on_error: str = "raise",
    jobs: int = 1, make_bar: MakeBar | None = None, announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build by shard.

    Labels follow the alphabetical order of the WordNet ids (`n01440764` is 0), as is usual; the id is the attribute
    `wnid`. The list of images is held in memory.

    Args:
        train_images: the tar of tars, or a folder of class folders.
        val_images: the tar of the official validation images, or a folder of class folders.
        out: folder of the shards.
        devkit: class names and, for a tar of validation images, their labels; without it classes are named by their id.
        val, seed: see `published_set.draw_val`.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ConfigError for a tar of validation images without the devkit; ShardError for other archives, and what
        `write_published` refuses.
    """
    kit = {} if devkit is None else by_tail(open_source(devkit, out=out, expected=_KIT), 1)
    if devkit is not None:
        require(kit, ("meta.mat", _TRUTH), source=devkit, expected=_KIT)
    synsets = _synsets(kit["meta.mat"]) if kit else {}
    train = list(_train(train_images, out))
    test = open_source(val_images, out=out, expected=_VAL)
    test = {file: part for file, part in test.items() if PurePosixPath(file).suffix[1:].lower() in _ENDINGS}
    if not test:
        raise ShardError(f"'{val_images}' has no image.", f"expected: {_VAL}")
    truth = _by_folder(test)
    if truth is None:
        if not kit:
            raise ConfigError(f"'{val_images}' has no class folders, so its labels are needed.", fix="--devkit FILE")
        truth = _by_number(test, [synsets[number][0] for number in _numbers(kit[_TRUTH], synsets)], val_images)
    wnids = sorted({wnid for wnid, _, _ in train})
    if unseen := sorted(set(truth.values()) - set(wnids)):
        raise ShardError(
            f"{len(unseen)} classes of '{val_images}' have no training image: {', '.join(unseen[:5])}.",
            f"expected: {_TRAIN}",
        )
    numbers = {wnid: label for label, wnid in enumerate(wnids)}
    names = dict(synsets.values())
    images = [
        PublishedImage(
            key=f"train/{wnid}/{_stem(file)}", name=file, split="train", label=numbers[wnid], part=part,
            change=as_readable, attributes={"wnid": wnid},
        )
        for wnid, file, part in train
    ]  # fmt: skip
    images += [
        PublishedImage(
            key=f"val/{_stem(file)}", name=file, split="test", label=numbers[truth[file]], part=part,
            change=as_readable, attributes={"wnid": truth[file]},
        )
        for file, part in test.items()
    ]  # fmt: skip
    options = WriteOptions(
        name=name, subset=subset, samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs,
        make_bar=make_bar, announce=announce,
    )  # fmt: skip
    return write_published(
        out, draw_val(images, share=val, seed=seed), card=CARD, classes=[names.get(wnid, wnid) for wnid in wnids],
        settings={"val": val, "seed": seed, "devkit": devkit is not None}, options=options, number_duplicates=True,
    )  # fmt: skip


def _train(source: Path, out: Path) -> Iterator[tuple[str, str, FilePart]]:
    """Yield (WordNet id, name, bytes) of each training image. Raises: ShardError for another layout."""
    files = open_source(source, out=out, expected=_TRAIN)
    inner = by_tail(files, 1, ("tar",))
    if not inner:
        by_folder = {file: part for file, part in files.items() if PurePosixPath(file).suffix[1:].lower() in _ENDINGS}
        classes = _by_folder(by_folder)
        if not classes:
            raise ShardError(f"'{source}' has neither tars nor class folders with images.", f"expected: {_TRAIN}")
        for file, wnid in classes.items():
            yield wnid, PurePosixPath(file).name, by_folder[file]
        return
    for tar, part in sorted(inner.items()):
        wnid = tar.removesuffix(".tar")
        if not _WNID.fullmatch(wnid):
            raise ShardError(f"'{source}' has a tar '{tar}'.", f"expected: {_TRAIN}")
        members = by_tail(open_inner(part, name=tar, expected=_TRAIN), 1, _ENDINGS)
        if not members:
            raise ShardError(f"{tar} in '{source}' has no image.", f"expected: {_TRAIN}")
        for file, image in members.items():
            yield wnid, file, image


def _by_folder(files: dict[str, FilePart]) -> dict[str, str] | None:
    """Return file -> the WordNet id that its folder is called by; None if the files are in no such folders."""
    found = {file: PurePosixPath(file).parent.name for file in files}
    return found if all(_WNID.fullmatch(wnid) for wnid in found.values()) else None


def _by_number(files: dict[str, FilePart], truth: list[str], source: Path) -> dict[str, str]:
    """Return file -> WordNet id, by the number in the name of a validation image. Raises: ShardError."""
    found = {}
    for file in files:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", _stem(file))
        if match is None or not 1 <= int(match[1]) <= len(truth):
            raise ShardError(
                f"'{source}': '{file}' is not one of the validation images 1 to {len(truth):,}.", f"expected: {_VAL}"
            )
        found[file] = truth[int(match[1]) - 1]
    return found


def _stem(file: str) -> str:
    return PurePosixPath(file).stem.replace(".", "_")


def _numbers(part: FilePart, synsets: dict[int, tuple[str, str]]) -> list[int]:
    """Return the class number of each validation image. Raises: ShardError for another file."""
    words = read_text(part, _TRUTH).split()
    wrong = [word for word in words if not word.isdecimal() or int(word) not in synsets]
    if wrong or not words:
        raise ShardError(f"{_TRUTH} has '{wrong[0][:20] if wrong else ''}', no number of a class.", f"expected: {_KIT}")
    return [int(word) for word in words]


def _synsets(meta: FilePart) -> dict[int, tuple[str, str]]:
    """Return class number -> (WordNet id, name) of the classes without children. Raises: ShardError."""
    from scipy.io import loadmat

    try:
        table = loadmat(io.BytesIO(read_small(meta, "meta.mat")), variable_names=["synsets"], squeeze_me=True)
        rows = table["synsets"]
        leaves = {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in rows.ravel()
            if int(row["num_children"]) == 0
        }
    except ShardError:
        raise
    except Exception as error:  # scipy and numpy raise many kinds for another file
        raise ShardError(
            f"meta.mat has no table of classes ({type(error).__name__}: {error}).", f"expected: {_KIT}"
        ) from error
    if not leaves or not all(_WNID.fullmatch(wnid) for wnid, _ in leaves.values()):
        raise ShardError("meta.mat has no class without children, or one without a WordNet id.", f"expected: {_KIT}")
    return leaves


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write a tar of two tars, a validation tar and a devkit. Returns: arguments, and 14 samples."""
    import numpy as np
    from scipy.io import savemat

    wnids = ("n02012849", "n03126707")  # both called "crane"
    tars = {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{i}.JPEG": tiny_image(10 * number + i) for i in range(5)})
        for number, wnid in enumerate(wnids)
    }
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": tiny_image(50 + number) for number in range(1, 5)}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(3, "n00001740", "entity", 2), (2, wnids[0], "crane", 0), (1, wnids[1], "crane", 0)]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=kinds)})
    root = "ILSVRC2012_devkit_t12/data"
    kit = {f"{root}/meta.mat": buffer.getvalue(), f"{root}/{_TRUTH}": b"2\n1\n1\n2\n"}
    return {
        "train_images": write_tar(folder / "ILSVRC2012_img_train.tar", tars),
        "val_images": write_tar(folder / "ILSVRC2012_img_val.tar", val),
        "devkit": write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", kit),
        "val": 0.2, "subset": True, "name": CARD.name,
    }, 14  # fmt: skip
