"""Oxford Flowers-102 (Nilsback, Zisserman, ICVGIP 2008): 102 kinds of flowers, with the authors' three splits.

The authors train on 10 images of each class and test on 6,149. Some papers exchange the two, because the test list is
the largest; `--swap` does so, and the name of the set then says it.
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
    add_write_arguments,
    as_readable,
    write_published,
)
from diffprobe.shards.source_archive import FilePart, by_tail, open_source, require
from diffprobe.shards.tiny_archive import tiny_image, write_tar

HELP = "Oxford Flowers-102: 102 kinds of flowers"
CARD = DatasetCard(
    name="flowers102",
    licence="not stated by the authors; Oxford 102 Category Flower Dataset, Nilsback, Zisserman, 2008",
    counts={"train": 1020, "val": 1020, "test": 6149},
    n_classes=102,
    disjoint_by={"train": "key", "val": "key", "test": "key"},
)
_EXPECTED = "102flowers.tgz, with jpg/image_00001.jpg to image_08189.jpg"
_LISTS = {"train": "trnid", "val": "valid", "test": "tstid"}
_MOST = 2**24
"""Largest list in bytes; the authors' have some 15 kB."""
# The archive numbers its classes; these are the names of the categories by that number, as copies of the set list them.
_NAMES = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid;
bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow iris;
globe-flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily; pincushion flower;
fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers; stemless gentian; artichoke;
sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly; ruby-lipped cattleya;
cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword lily; poinsettia;
bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia; wild pansy; primula;
sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink-yellow dahlia; cautleya spicata;
japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum; spring crocus; bearded iris;
windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple; morning glory; passion flower; lotus;
toad lily; anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree mallow; magnolia; cyclamen;
watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow;
mexican petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""
NAMES = tuple(" ".join(name.split()) for name in _NAMES.split(";"))
"""Name of each class."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the archive and the two lists."""
    parser.add_argument("--images", type=Path, required=True, metavar="FILE", help="102flowers.tgz, or its folder")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="imagelabels.mat")
    parser.add_argument("--splits", type=Path, required=True, metavar="FILE", help="setid.mat")
    parser.add_argument("--swap", action="store_true", help="train on the authors' test list, test on their train list")
    add_write_arguments(parser)


def build(
    images: Path, labels: Path, splits: Path, out: Path, swap: bool = False, name: str | None = None,
    subset: bool = False, samples_per_shard: int = 1000, on_error: str = "raise", jobs: int = 1,
    make_bar: MakeBar | None = None, announce: Announce | None = None,
) -> ShardSet:  # fmt: skip
    """Build the shard set, or continue an interrupted build. A class is labelled with the authors' number less one.

    Args:
        images: the archive, or the folder that it unpacks to.
        labels, splits: `imagelabels.mat` and `setid.mat`.
        out: folder of the shards.
        swap: exchange train and test; the set is then called `flowers102-swapped`.
        name, subset, samples_per_shard, on_error, jobs, make_bar, announce: see `published_set.WriteOptions`.

    Raises: ShardError for other files, an image in two lists, and what `write_published` refuses.
    """
    classes = _list_of(labels, "labels", "imagelabels.mat")
    lists = {split: _list_of(splits, key, "setid.mat") for split, key in _LISTS.items()}
    if swap:
        lists["train"], lists["test"] = lists["test"], lists["train"]
    files = by_tail(open_source(images, out=out, expected=_EXPECTED), 1, ("jpg",))
    numbers = [number for found in lists.values() for number in found]
    if len(set(numbers)) < len(numbers):
        raise ShardError(f"'{splits}' has an image in two lists, or twice in one.", "expected: setid.mat")
    if not all(1 <= number <= len(classes) for number in numbers):
        raise ShardError(f"'{splits}' names images that '{labels}' does not label (1 to {len(classes)}).")
    if not all(1 <= label <= len(NAMES) for label in classes):
        raise ShardError(f"'{labels}' has labels out of range; allowed: 1 to {len(NAMES)}.")
    require(files, (_file(number) for number in numbers), source=images, expected=_EXPECTED)
    listed = [
        PublishedImage(
            key=_file(number).removesuffix(".jpg"), name=_file(number), split=split, label=classes[number - 1] - 1,
            part=files[_file(number)], change=as_readable,
        )
        for split, found in lists.items()
        for number in found
    ]  # fmt: skip
    options = WriteOptions(
        name=name or (f"{CARD.name}-swapped" if swap else None), subset=subset,
        samples_per_shard=samples_per_shard, on_error=on_error, jobs=jobs, make_bar=make_bar, announce=announce,
    )  # fmt: skip
    counts = {**CARD.counts, "train": CARD.counts["test"], "test": CARD.counts["train"]} if swap else None
    return write_published(
        out, listed, card=CARD, classes=NAMES, settings={"swap": swap}, options=options, counts=counts
    )


def _file(number: int) -> str:
    return f"image_{number:05d}.jpg"


def _list_of(path: Path, key: str, expected: str) -> list[int]:
    """Return the integers of one variable of a MATLAB file. Raises: ShardError for another file."""
    import numpy as np
    from scipy.io import loadmat

    if not path.is_file():
        raise ShardError(f"'{path}' does not exist.", f"expected: {expected} of Flowers-102")
    part = FilePart(path=path)
    if (size := part.size()) > _MOST:
        raise ShardError(f"'{path}' has {size:,} bytes, more than {_MOST:,}.", f"expected: {expected} of Flowers-102")
    try:
        values = np.asarray(loadmat(io.BytesIO(part.read()), variable_names=[key])[key])
    except Exception as error:  # scipy raises many kinds for what is no MATLAB file
        raise ShardError(
            f"'{path}' has no list '{key}' ({type(error).__name__}: {error}).", f"expected: {expected} of Flowers-102"
        ) from error
    if values.dtype.kind not in "iu" or not values.size:
        raise ShardError(f"'{path}': '{key}' is not a list of integers.", f"expected: {expected} of Flowers-102")
    return [int(value) for value in values.ravel()]


def tiny(folder: Path) -> tuple[dict[str, object], int]:
    """Write an archive of 10 images of two classes and its lists. Returns: arguments, and 9 samples."""
    import numpy as np
    from scipy.io import savemat

    files = {f"jpg/{_file(number)}": tiny_image(number) for number in range(1, 11)}
    archive = write_tar(folder / "102flowers.tgz", files)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 102] * 5], dtype=np.uint8)})
    lists = {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6, 7, 8, 9]}
    savemat(folder / "setid.mat", {key: np.array([found], dtype=np.uint16) for key, found in lists.items()})
    return {
        "images": archive, "labels": folder / "imagelabels.mat", "splits": folder / "setid.mat",
        "subset": True, "name": CARD.name,
    }, 9  # fmt: skip
