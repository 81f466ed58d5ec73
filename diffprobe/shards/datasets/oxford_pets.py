"""Oxford-IIIT Pet (Parkhi et al., Cats and Dogs, CVPR 2012): 37 breeds, the species, and a mask of each pet.

The authors split trainval and test; val is drawn from trainval by seed. Images that neither list names are left out.
"""

import argparse
import io
from pathlib import Path

from diffprobe.core.errors import ShardError
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
from diffprobe.shards.resumable import FurtherFile
from diffprobe.shards.source_archive import by_tail, open_source, read_text, require
from diffprobe.shards.tiny_archive import tiny_image, write_tar

HELP = "Oxford-IIIT Pet: 37 breeds of cats and dogs, with masks"
CARD = DatasetCard(
    name="oxford_pets",
    licence="CC BY-SA 4.0; Oxford-IIIT Pet, Parkhi, Vedaldi, Zisserman, Jawahar, 2012",
    counts={"train": 3680, "test": 3669},
    n_classes=37,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_IMAGES = "images.tar.gz of Oxford-IIIT Pet, with images/<Breed>_<number>.jpg"
_LISTS = "annotations.tar.gz of Oxford-IIIT Pet, with annotations/trainval.txt, test.txt and trimaps/"
_SPECIES = {1: "cat", 2: "dog"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two archives."""
    parser.add_argument("--images", type=Path, required=True, metavar="FILE", help="images.tar.gz, or its folder")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="annotations.tar.gz, or its folder"
    )
    add_val_arguments(parser)
    add_write_arguments(parser)


def build(
    images: Path, annotations: Path, out: Path, val: float = 0.1, seed: int = 0, name: str | None = None,
    subset: bool = False, samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1,
    make_bar: MakeBar | None = None, announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build.

    The class is the breed, in the order of the lists; the attribute `species` is cat or dog. Where the annotations
    have trimaps, `mask.png` is 1 on the pet, 2 on its outline and 0 elsewhere.

    Args:
        images, annotations: the two archives, or the folders that they unpack to.
        out: folder of the shards.
        val, seed: see `published_set.draw_val`.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ShardError for archives of another set, a list with other columns, and what `write_published` refuses.
    """
    lists = open_source(annotations, out=out, expected=_LISTS)
    texts = by_tail(lists, 1, ("txt",))
    require(texts, ("trainval.txt", "test.txt"), source=annotations, expected=_LISTS)
    files = by_tail(open_source(images, out=out, expected=_IMAGES), 1, ("jpg",))
    masks = by_tail({path: part for path, part in lists.items() if "trimaps/" in path}, 1, ("png",))
    breeds: dict[int, str] = {}
    found = []
    for file, split in (("trainval.txt", "train"), ("test.txt", "test")):
        for number, line in enumerate(read_text(texts[file], file).splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            image, breed, species = _row(line, f"{file}, line {number}")
            breed_name = image.rpartition("_")[0].replace("_", " ")
            if breeds.setdefault(breed, breed_name) != breed_name:
                raise ShardError(
                    f"{file}, line {number}: class {breed} is '{breed_name}' here, '{breeds[breed]}' before."
                )
            found.append((image, split, breed, species))
    require(files, (f"{image}.jpg" for image, *_ in found), source=images, expected=_IMAGES)
    if masks:
        require(masks, (f"{image}.png" for image, *_ in found), source=annotations, expected=_LISTS)
    numbers = {breed: label for label, breed in enumerate(sorted(breeds))}
    listed = [
        PublishedImage(
            key=image, name=f"{image}.jpg", split=split, label=numbers[breed], part=files[f"{image}.jpg"],
            change=as_readable, attributes={"species": _SPECIES[species]},
            further=(FurtherFile(field="mask.png", part=masks[f"{image}.png"], change=to_mask),) if masks else (),
        )
        for image, split, breed, species in found
    ]  # fmt: skip
    options = WriteOptions(
        name=name, subset=subset, samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs,
        make_bar=make_bar, announce=announce,
    )  # fmt: skip
    return write_published(
        out, draw_val(listed, share=val, seed=seed), card=CARD, classes=[breeds[breed] for breed in sorted(breeds)],
        settings={"val": val, "seed": seed, "masks": bool(masks)}, options=options,
    )  # fmt: skip


def _row(line: str, where: str) -> tuple[str, int, int]:
    """Return name, class and species of a line of a list. Raises: ShardError for other columns."""
    parts = line.split()
    if len(parts) != 4 or not all(part.isdecimal() for part in parts[1:]) or int(parts[2]) not in _SPECIES:
        raise ShardError(f"{where}: '{line[:80]}'", "expected: <Breed>_<number> <class> <1: cat, 2: dog> <breed>")
    return parts[0], int(parts[1]), int(parts[2])


def to_mask(trimap: bytes) -> bytes:
    """Turn a trimap (1 pet, 2 background, 3 outline) into a mask (1 pet, 0 background, 2 outline), as PNG."""
    from PIL import Image

    with Image.open(io.BytesIO(trimap), formats=("PNG",)) as image:
        levels = [0, 1, 0, 2, *[0] * 252]
        buffer = io.BytesIO()
        Image.frombytes("L", image.size, image.tobytes()).point(levels).save(buffer, "PNG")
    return buffer.getvalue()


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write archives of two breeds with 12 listed images and one that is not. Returns: arguments, and 12 samples."""
    import numpy as np
    from PIL import Image

    lines: dict[str, list[str]] = {"trainval": ["# Image CLASS-ID SPECIES BREED ID"], "test": []}
    files, masks = {}, {}
    for number in range(12):
        breed = number % 2
        image = f"{('Abyssinian', 'great_pyrenees')[breed]}_{number}"
        lines["trainval" if number < 8 else "test"].append(f"{image} {breed + 1} {breed + 1} 1")
        files[f"images/{image}.jpg"] = tiny_image(number)
        buffer = io.BytesIO()
        Image.fromarray((np.arange(96) % 3 + 1).astype(np.uint8).reshape(8, 12)).save(buffer, "PNG")
        masks[f"annotations/trimaps/{image}.png"] = buffer.getvalue()
        masks[f"annotations/trimaps/._{image}.png"] = b"of a desktop system"
    files["images/Abyssinian_99.jpg"] = tiny_image(99)
    lists = {f"annotations/{name}.txt": "".join(f"{x}\n" for x in rows).encode() for name, rows in lines.items()}
    return {
        "images": write_tar(folder / "images.tar.gz", files),
        "annotations": write_tar(folder / "annotations.tar.gz", {**lists, **masks}),
        "val": 0.25, "subset": True, "name": CARD.name,
    }, 12  # fmt: skip
