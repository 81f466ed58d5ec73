"""Find the shards of a folder, and the split of each by its file name or folder.

Whatever looks like a shard is read or refused by name: a file that is passed over silently is a smaller data set.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from diffprobe.core.errors import ShardError
from diffprobe.shards.reader import is_text

SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Ends of the names of shards, in any case."""
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Words of public data sets for a split -> the name of the split in diffprobe."""
NAMES = (
    "a name has its split and a number: train-0000.tar, imagenet-val-000012.tar.gz, test-00000-of-00032.tgz; "
    "or a folder is named after the split: val/00000.tar"
)
IMAGE_ENDINGS = {"jpg": "jpg", "jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "png": "png", "webp": "webp"}
"""Ends of the names of images, in any case -> the field of the sample that holds such an image."""
_LOOKED_AT = 10_000
"""Most files that are looked at to tell a folder of images from one of shards."""
_COUNTERS = frozenset({"shard", "shards", "part", "parts", "chunk", "chunks", "data", "dataset", "file", "files"})
"""Words that count files and do not name a split."""
_NAME = re.compile(r"(?P<stem>.*?)[-_.]?\d+", re.DOTALL)
_PART_OF = re.compile(r"(?P<stem>.*?)[-_.]?\d+[-_.]of[-_.]?\d+", re.IGNORECASE | re.DOTALL)
_LIKE_TAR = re.compile(r"\.(tar|tgz|taz|tbz2?|tb2|txz|tlz|tzst)(\.|$)", re.IGNORECASE)
_BESIDE = re.compile(
    r"\.(json|jsonl|txt|csv|tsv|md|ya?ml|idx|index|md5|sha1|sha256|sha512|md5sum|sha256sum|sig|asc|lock|log|parquet)$",
    re.IGNORECASE,
)
"""Files beside a shard that describe it: `train-0000.tar.md5`, `train-0000.tar.idx`."""
_PARTIAL = re.compile(r"\.(part|partial|tmp|temp|incomplete|crdownload|download|aria2|filepart|\d+)$", re.IGNORECASE)
_TOOLS = {"zst": "zstd -d --rm", "bz2": "bunzip2", "xz": "unxz", "lz4": "lz4 -d --rm", "z": "uncompress"}


def find_shards(root: Path) -> list[Path]:
    """List the shards below a folder, sorted by name. Hidden files and folders are not read.

    Raises: ShardError for a missing folder, no shard, and files that look like shards and are not read: other
        compressions, unfinished downloads, pipes and devices, names that are not UTF-8.
    """
    if not root.is_dir():
        raise ShardError(f"folder '{root}' not found." if not root.exists() else f"'{root}' is not a folder.")
    found: list[Path] = []
    refused: list[tuple[Path, str, str | None]] = []
    for path in files_below(root):
        name = path.name
        if not _LIKE_TAR.search(name) or _BESIDE.search(name):
            continue
        if not path.is_file():
            refused.append((path, "not a regular file", None))
        elif not is_text(str(path.relative_to(root))):
            refused.append((path, "its name is not UTF-8 text", "rename it"))
        elif name.lower().endswith(SUFFIXES):
            found.append(path)
        elif _PARTIAL.search(name):
            refused.append((path, "an unfinished download or a part of a file", "finish or remove it"))
        else:
            tool = _TOOLS.get(name.rpartition(".")[2].lower())
            fix = f"{tool} '{path}'" if tool else "unpack it, pack it with gzip, or move it away"
            refused.append((path, "a compression that is not read", fix))
    if refused:
        lines = [f"{path.relative_to(root)}: {why}" for path, why, _ in refused]
        raise ShardError(
            f"'{root}' has {len(refused)} files that look like shards and are not read.",
            f"read are {', '.join(SUFFIXES)}", *lines[:10], *more_lines(lines, 10),
            fix=next((fix for _, _, fix in refused if fix), "move them away"),
        )  # fmt: skip
    if not found:
        raise ShardError(
            f"no shard in '{root}'.",
            "looked for: <split>-0000.tar, .tar.gz or .tgz, also in subfolders",
            fix=build_command(root),
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def build_command(root: Path) -> str | None:
    """Return the command that builds shards from the images of a folder; None if it has none, or has shards."""
    has_images = False
    for path in islice(files_below(root), _LOOKED_AT):
        if _LIKE_TAR.search(path.name):
            return None
        has_images = has_images or path.suffix[1:].lower() in IMAGE_ENDINGS
    return f"diffprobe data build folder {shlex.quote(str(root))} --out SHARDS" if has_images else None


def splits_of(
    files: list[str], *, split: str | None = None, assigned: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return file -> split of the shards of one set, given by their paths below its folder.

    A split word (`SPLIT_WORDS`) at the end of the name, or else of the innermost folder that has one, decides:
    `imagenet-val-3.tar` and `validation/3.tar` belong to val. Otherwise the name before its number is the split, if it
    is in the set's own folder: `test-hard-0000.tar` belongs to test-hard.

    Args:
        split: the split of all files whose names and folders have no split.
        assigned: pattern of paths ("0000[89].tar") -> the split of the files that it matches, whatever their names.

    Raises: ShardError for names without a split, with two of them, for different names that would be joined into one
        split, and for a pattern that matches no file, or one that another pattern matches.
    """
    chosen = _assigned(files, assigned or {})
    found: dict[str, str] = {}
    origins: dict[str, dict[str, str]] = {}
    unnamed: list[str] = []
    doubtful: list[str] = []
    for file in files:
        name, origin = (chosen[file], "--split") if file in chosen else _split_of(file)
        if name is None and split is not None:
            name, origin = split, "--split"
        if name is None:
            (doubtful if origin else unnamed).append(f"{file}: {origin}" if origin else file)
            continue
        found[file] = name
        origins.setdefault(name, {}).setdefault(origin, file)
    if doubtful:
        raise ShardError("shards with two splits in their name.", *doubtful[:10], *more_lines(doubtful, 10), NAMES)
    if unnamed:
        raise ShardError(
            f"{len(unnamed)} shards without a split in their name: {', '.join(unnamed[:5])}"
            f"{' ...' if len(unnamed) > 5 else ''}.",
            NAMES,
            fix="rename them, move them into folders named train, val and test, or give the split of all of them: "
            "diffprobe data index DIR ... --split train; of some: --split 'val=0000[89].tar' (data adopt has it, too)",
        )
    joined = {name: names for name, names in origins.items() if len(names) > 1}
    if joined:
        name, names = next(iter(joined.items()))
        raise ShardError(
            f"differently named shards would be joined into the split '{name}'.",
            *(f"{origin}: {file}" for origin, file in list(names.items())[:10]),
            fix="name all shards of a split alike, or keep them in folders of their own and index each",
        )
    return found


def _assigned(files: list[str], patterns: Mapping[str, str]) -> dict[str, str]:
    """Return file -> split of the files that the patterns match."""
    found: dict[str, str] = {}
    for pattern, split in patterns.items():
        matched = [file for file in files if fnmatchcase(file, pattern)]
        if not matched:
            raise ShardError(f"--split {split}={pattern} matches no shard.", f"shards: {', '.join(files[:10])}")
        twice = [file for file in matched if file in found and found[file] != split]
        if twice:
            raise ShardError(f"--split: '{twice[0]}' is in '{found[twice[0]]}' and '{split}' (pattern '{pattern}').")
        found.update(dict.fromkeys(matched, split))
    return found


def splits_not_named(splits: Mapping[str, str]) -> dict[str, str]:
    """Return file -> split of the shards whose split neither their names nor one `--split NAME` for all give.

    >>> splits_not_named({"0.tar": "train", "1.tar": "train"})
    {}
    >>> splits_not_named({"0.tar": "train", "1.tar": "val", "test-0.tar": "val"})
    {'0.tar': 'train', '1.tar': 'val', 'test-0.tar': 'val'}
    """
    named = {file: _split_of(file)[0] for file in splits}
    unnamed = {file: split for file, split in splits.items() if named[file] is None}
    several = len(set(unnamed.values())) > 1
    return {file: split for file, split in splits.items() if (several if file in unnamed else named[file] != split)}


def split_of(path: Path) -> str:
    """Return the split of a single shard by its file name.

    >>> [split_of(Path(name)) for name in ("train-0003.tar.gz", "imagenet-val-07.tgz", "extra-0.tar")]
    ['train', 'val', 'extra']
    """
    return splits_of([path.name])[path.name]


def _split_of(file: str) -> tuple[str | None, str]:
    """Return the split of a shard and the text that names it; None with a reason if its name has two splits."""
    *folders, name = file.split("/")
    base = _without_suffix(name)
    match = _PART_OF.fullmatch(base) or _NAME.fullmatch(base)
    stem = match["stem"] if match else base
    words = _words(stem)
    ends = {SPLIT_WORDS[word] for word in (*words[:1], *words[-1:]) if word in SPLIT_WORDS}
    if len(ends) > 1:
        return None, f"its name has {' and '.join(sorted(ends))}"
    if words and words[-1] in SPLIT_WORDS:
        return SPLIT_WORDS[words[-1]], "/".join([*folders, stem])
    for depth in range(len(folders), 0, -1):
        inner = _words(folders[depth - 1])
        if inner and inner[-1] in SPLIT_WORDS:
            return SPLIT_WORDS[inner[-1]], "/".join(folders[:depth])
    is_separated = match is not None and base[len(stem) : len(stem) + 1] in ("-", "_", ".")
    return (stem, stem) if words and is_separated and not folders else (None, "")


def split_word(folder: str, *, exact: bool = False) -> str | None:
    """Return the split that the name of a folder means, by its last word or, with `exact`, as a whole.

    >>> split_word("validation"), split_word("imagenet-val"), split_word("imagenet-val", exact=True), split_word("cat")
    ('val', 'val', None, None)
    """
    words = [folder.lower()] if exact else _words(folder)[-1:]
    return SPLIT_WORDS.get(words[0]) if words else None


def _words(stem: str) -> list[str]:
    """Return the words of a name in lower case, without counters at its end: `train_part-1` has the word train."""
    words = [word for word in re.split(r"[-_. ]+", stem.lower()) if word]
    while words and (words[-1] in _COUNTERS or words[-1].isdigit()):
        words.pop()
    return words


def _without_suffix(name: str) -> str:
    suffix = next(suffix for suffix in (".tar.gz", ".tgz", ".tar", "") if name.lower().endswith(suffix))
    return name[: len(name) - len(suffix)]


def files_below(root: Path) -> Iterator[Path]:
    """Yield all entries below a folder that are not folders; a link to a folder is followed once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def more_lines(lines: list[str], shown: int) -> list[str]:
    """Return the line that ends a list of which the first `shown` lines are printed; none if those are all."""
    return [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
