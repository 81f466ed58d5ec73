"""Find the images of a folder: their classes by subfolder, and their splits where folders are named after them.

`datasets/folder.py` turns them into shards.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.errors import ShardError
from diffprobe.shards.reader import is_text
from diffprobe.shards.shard_names import IMAGE_ENDINGS, files_below, more_lines, split_word

OTHER_IMAGES = frozenset({"gif", "bmp", "tif", "tiff", "heic", "heif", "avif", "ppm", "jp2", "svg"})
"""Ends of the names of images that are not read; each such file is reported as unreadable."""
LAYOUT = "expected: DIR/<class>/*.jpg, DIR/<split>/<class>/*.jpg, or DIR/*.jpg with --table (jpg, jpeg, png, webp)"
_SHOWN = 10
"""Most files that an error lists."""


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """One image of a folder.

    Attributes:
        path: the file.
        name: its path below the folder, with slashes.
        key: identity of the sample; the name without its extension, dots replaced.
        split: the split by its folder; None without split folders.
        class_name: name of its class folder; None directly in the folder.
    """

    path: Path
    name: str
    key: str
    split: str | None
    class_name: str | None


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a folder.

    Attributes:
        images: sorted by name.
        unread: one line per image of a format that is not read.
        others: extension -> number of further files.
    """

    images: tuple[FoundImage, ...]
    unread: tuple[str, ...]
    others: dict[str, int]

    def splits(self) -> tuple[str, ...]:
        """Return the splits named by folders, sorted."""
        return tuple(sorted({image.split for image in self.images if image.split is not None}))


def find_images(root: Path, *, ignored: Sequence[Path] = (), same_classes: bool = True) -> ImageFolder:
    """List the images below a folder. Hidden files and folders are not read; links to folders are followed once.

    Args:
        root: the folder.
        ignored: files that are known not to be images, such as the table of captions.
        same_classes: refuse class folders that not all split folders have.

    Raises: ShardError for a folder without images, names that are not UTF-8, split folders beside class folders, two
        folders of one split, images outside of the class folders, class folders without an image, and classes that
        differ between the splits.
    """
    if not root.is_dir():
        raise ShardError(f"folder '{root}' not found." if not root.exists() else f"'{root}' is not a folder.", LAYOUT)
    known = {path.resolve() for path in ignored}
    names: dict[str, Path] = {}
    unread: list[str] = []
    others: Counter[str] = Counter()
    for path in files_below(root):
        name, ending = path.relative_to(root).as_posix(), path.suffix[1:].lower()
        if ending in IMAGE_ENDINGS:
            names[name] = path
        elif ending in OTHER_IMAGES:
            unread.append(f"{name}: format '{ending}' is not read (JPEG, PNG, WebP are)")
        elif path.resolve() not in known:
            others[ending or "without extension"] += 1
    _refuse(
        [f"{name!a}" for name in names if not is_text(name)],
        f"names below '{root}' are not UTF-8 text", "rename them",
    )  # fmt: skip
    if not names:
        found = ", ".join(f"{n} .{ending}" for ending, n in others.most_common(5)) or "nothing else"
        raise ShardError(f"no image in '{root}'.", LAYOUT, f"found: {found}", *unread[:_SHOWN])
    splits = _split_folders(root, names)
    keys = _keys(names)
    images = []
    for name in sorted(names):
        top, *rest = name.split("/")
        split = splits.get(top)
        parts = rest if split is not None else [top, *rest]
        images.append(
            FoundImage(
                path=names[name], name=name, key=keys[name], split=split,
                class_name=parts[0] if len(parts) > 1 else None,
            )
        )  # fmt: skip
    _check_classes(root, images, splits, same_classes)
    return ImageFolder(images=tuple(images), unread=tuple(unread), others=dict(others))


def _split_folders(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return folder -> split if the folders in `root` are named after splits, else nothing."""
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    loose = [name for name in names if "/" not in name]
    found = {top: split for top in tops if (split := split_word(top)) is not None}
    exact = [top for top in found if split_word(top, exact=True)]
    if not exact and (len(found) < len(tops) or loose):  # "bullet_train" among other classes is a class
        return {}
    if len(found) < len(tops) or loose:
        others = [*(top for top in tops if top not in found), *loose]
        raise ShardError(
            f"'{root}' has folders of splits ({', '.join(exact)}) beside others: {', '.join(others[:_SHOWN])}.",
            LAYOUT,
            fix="move the others away, or give the class folder of that name another one",
        )
    by_split: dict[str, list[str]] = {}
    for top, split in found.items():
        by_split.setdefault(split, []).append(top)
    twice = [f"{split}: {', '.join(tops)}" for split, tops in by_split.items() if len(tops) > 1]
    _refuse(twice, f"splits have several folders in '{root}'", "move the images of a split into one folder")
    return found


def _check_classes(root: Path, images: Sequence[FoundImage], splits: dict[str, str], same_classes: bool) -> None:
    by_split: dict[str | None, set[str]] = {image.split: set() for image in images}
    for image in images:
        if image.class_name is not None:
            by_split[image.split].add(image.class_name)
    classes = set().union(*by_split.values())
    if not classes:
        return
    _refuse(
        [image.name for image in images if image.class_name is None],
        f"images in '{root}' are outside of the class folders", "move them into folders of classes",
    )  # fmt: skip
    bases = [root / top for top in splits] or [root]
    empty = [
        folder.relative_to(root).as_posix()
        for base in bases
        for folder in sorted(base.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in by_split[splits.get(base.name)]
    ]
    differing = [
        f"{split}: without {', '.join(sorted(classes - found)[:_SHOWN])}"
        + (f" and {len(classes - found) - _SHOWN} more" if len(classes - found) > _SHOWN else "")
        for split, found in sorted(by_split.items(), key=lambda item: str(item[0]))
        if found != classes
    ]
    _refuse(
        differing if same_classes else [], f"splits in '{root}' lack class folders that others have",
        "give every split the same classes, or keep all images in DIR/<class>/ and let --val and --test split them; "
        "--classes union accepts them",
    )  # fmt: skip
    _refuse(empty, f"class folders in '{root}' have no image", "remove them, or add their images")


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Return name -> key. A key has no dot after its last slash; files that differ in their extension keep it.

    >>> _keys(["a/cat.0.jpg", "a/1.jpg", "a/1.png"])
    {'a/cat.0.jpg': 'a/cat_0', 'a/1.jpg': 'a/1_jpg', 'a/1.png': 'a/1_png'}
    """

    def plain(name: str) -> str:
        folder, slash, file = name.rpartition("/")
        return f"{folder}{slash}{file.replace('.', '_')}"

    short = {name: plain(name.rpartition(".")[0]) for name in names}
    count = Counter(short.values())
    keys = {name: key if count[key] == 1 else plain(name) for name, key in short.items()}
    by_key: dict[str, list[str]] = {}
    for name, key in keys.items():
        by_key.setdefault(key, []).append(name)
    twice = [f"{key}: {', '.join(found)}" for key, found in by_key.items() if len(found) > 1]
    _refuse(twice, "keys of samples would belong to several images", "rename the images")
    return keys


def _refuse(lines: Sequence[str], what: str, fix: str) -> None:
    if lines:
        raise ShardError(f"{len(lines)} {what}.", *lines[:_SHOWN], *more_lines(list(lines), _SHOWN), fix=fix)
