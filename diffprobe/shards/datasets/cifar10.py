"""CIFAR-10 (Krizhevsky, 2009) from its binary version: ten kinds of objects, 32 x 32 pixels.

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

HELP = "CIFAR-10: ten kinds of objects, 32 x 32 pixels"
CARD = DatasetCard(
    name="cifar10",
    licence="not stated by the authors; CIFAR-10, Krizhevsky, Learning Multiple Layers of Features, 2009",
    counts={"train": 50_000, "test": 10_000},
    n_classes=10,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_EXPECTED = "cifar-10-binary.tar.gz (binary version), with data_batch_1.bin to 5, test_batch.bin, batches.meta.txt"
_SPLITS = {**{f"data_batch_{number}.bin": "train" for number in range(1, 6)}, "test_batch.bin": "test"}
_NAMES = "batches.meta.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FILE", help="cifar-10-binary.tar.gz, or its folder"
    )
    add_val_arguments(parser)
    add_write_arguments(parser)


def build(
    images: Path, out: Path, val: float = 0.1, seed: int = 0, name: str | None = None, subset: bool = False,
    samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1, make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build. Labels are the authors'.

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
    require(files, [*_SPLITS, _NAMES], source=images, expected=_EXPECTED)
    classes = class_names(files, _NAMES, images)
    listed = []
    for file, split in _SPLITS.items():
        for number, (labels, part) in enumerate(records(files[file], file, 1)):
            where = f"{file}, record {number}"
            listed.append(
                PublishedImage(
                    key=f"{file.removesuffix('.bin')}/{number:05d}", name=where, split=split,
                    label=check_label(labels[0], classes, where), part=part, field="png", change=to_png,
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
    """Write an archive of two classes with 4 records in each of its 6 files. Returns: arguments, and 24 samples."""
    files = {
        f"cifar-10-batches-bin/{file}": tiny_records(4, [(0,), (1,)], start=4 * number)
        for number, file in enumerate(_SPLITS)
    }
    files[f"cifar-10-batches-bin/{_NAMES}"] = b"airplane\nautomobile\n\n"
    archive = write_tar(folder / "cifar-10-binary.tar.gz", files)
    return {"images": archive, "val": 0.2, "subset": True, "name": CARD.name}, 24
