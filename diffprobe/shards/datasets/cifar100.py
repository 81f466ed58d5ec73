"""CIFAR-100 (Krizhevsky, 2009) from its binary version: 100 kinds of objects in 20 superclasses.

The authors split train and test; val is drawn from train by seed. Images are written as PNG.
"""

import argparse
from pathlib import Path

from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.cifar_records import check_label, class_names, records, tiny_records, to_png
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet
from diffprobe.shards.published_set import (
    PublishedImage,
    WriteOptions,
    add_val_arguments,
    add_write_arguments,
    draw_val,
    write_published,
)
from diffprobe.shards.source_archive import by_tail, open_source, require
from diffprobe.shards.tiny_archive import write_tar

HELP = "CIFAR-100: 100 kinds of objects in 20 superclasses, 32 x 32 pixels"
CARD = DatasetCard(
    name="cifar100",
    licence="not stated by the authors; CIFAR-100, Krizhevsky, Learning Multiple Layers of Features, 2009",
    counts={"train": 50_000, "test": 10_000},
    n_classes=100,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_EXPECTED = "cifar-100-binary.tar.gz (binary version), with train.bin, test.bin and the two lists *_label_names.txt"
_SPLITS = {"train.bin": "train", "test.bin": "test"}
_FINE, _COARSE = "fine_label_names.txt", "coarse_label_names.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FILE", help="cifar-100-binary.tar.gz, or its folder"
    )
    add_val_arguments(parser)
    add_write_arguments(parser)


def build(
    images: Path, out: Path, val: float = 0.1, seed: int = 0, name: str | None = None, subset: bool = False,
    samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1, make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build. Labels are the fine ones;
    the attribute `superclass` is the name of the coarse one.

    The key of a sample is its file and the number of its record there.

    Args:
        images: the archive, or the folder that it unpacks to.
        out: folder of the shards.
        val, seed: see `published_set.draw_val`.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ShardError for another archive (also for the Python version, whose files are pickled), a label without a
        name, and what `write_published` refuses.
    """
    files = by_tail(open_source(images, out=out, expected=_EXPECTED), 1, ("bin", "txt"))
    require(files, [*_SPLITS, _FINE, _COARSE], source=images, expected=_EXPECTED)
    classes, superclasses = class_names(files, _FINE, images), class_names(files, _COARSE, images)
    listed = []
    for file, split in _SPLITS.items():
        for number, (labels, part) in enumerate(records(files[file], file, 2)):
            where = f"{file}, record {number}"
            coarse = check_label(labels[0], superclasses, where)
            listed.append(
                PublishedImage(
                    key=f"{file.removesuffix('.bin')}/{number:05d}", name=where, split=split,
                    label=check_label(labels[1], classes, where), part=part, field="png", change=to_png,
                    attributes={"superclass": superclasses[coarse]},
                )
            )  # fmt: skip
    options = WriteOptions(
        name=name, subset=subset, samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs,
        make_bar=make_bar, announce=announce,
    )  # fmt: skip
    return write_published(
        out, draw_val(listed, share=val, seed=seed), card=CARD, classes=classes,
        settings={"val": val, "seed": seed}, options=options,
    )  # fmt: skip


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write an archive of three classes in two superclasses. Returns: arguments, and 18 samples."""
    labels = [(0, 0), (0, 1), (1, 2)]
    files = {
        "cifar-100-binary/train.bin": tiny_records(12, labels),
        "cifar-100-binary/test.bin": tiny_records(6, labels, start=12),
        f"cifar-100-binary/{_FINE}": b"apple\naquarium_fish\nbaby\n",
        f"cifar-100-binary/{_COARSE}": b"plants\npeople\n",
    }
    archive = write_tar(folder / "cifar-100-binary.tar.gz", files)
    return {"images": archive, "val": 0.25, "subset": True, "name": CARD.name}, 18
