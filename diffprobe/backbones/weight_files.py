"""Find the safetensors files of one part of a checkpoint, in every layout that diffusers and transformers write.

A plain file, shards with an index, and both for a variant (fp16). Only safetensors files inside the part's folder are
read: an index that names anything else is refused, whatever the libraries would do with it.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from diffprobe.backbones.hub import STEMS
from diffprobe.backbones.part_config import CONFIG, SAVE_AGAIN
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.json_file import expect, read_json_object

_SHARD = re.compile(r"-\d+-of-\d+$")
_MAX_BYTES = 32 * 2**20
"""Largest index that is read, in bytes: 200,000 tensors."""


@dataclass(frozen=True)
class Layout:
    """One set of weights in a folder.

    Attributes:
        variant: for example `fp16`; empty for the plain weights.
        file: the weights, or the index of their shards.
    """

    variant: str
    file: Path

    @property
    def is_sharded(self) -> bool:
        """Whether `file` is an index."""
        return self.file.suffix == ".json"


def layouts(folder: Path) -> list[Layout]:
    """List the sets of safetensors weights in a folder, plain ones first. Names alone are looked at."""
    found = []
    for stem in STEMS:
        single = re.compile(rf"{stem}(?:\.(.+))?\.safetensors")
        index = re.compile(rf"{stem}\.safetensors(?:\.(.+))?\.index\.json|{stem}\.safetensors\.index\.(.+)\.json")
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            one, many = single.fullmatch(path.name), index.fullmatch(path.name)
            if one and path.is_file() and not _SHARD.search(path.stem) and not _SHARD.search(path.stem.split(".")[0]):
                found.append(Layout(one[1] or "", path))
            elif many and path.is_file():
                found.append(Layout(many[1] or many[2] or "", path))
        if found:
            break
    return sorted(found, key=lambda layout: layout.variant)


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of one part: the plain file, its shards, or those of the only variant that exists.

    A safetensors file in place of a folder is returned itself. Empty if there are none, or several variants without a
    plain one: see `lack_of_weights`.
    Raises: WeightsMismatch for an index that cannot be read or names files outside of the folder; if one set of
        weights is there twice; for a file that is a link out of the folder.
    """
    if folder.is_file():
        return [folder] if folder.suffix == ".safetensors" else []
    found = layouts(folder)
    plain = [layout for layout in found if not layout.variant]
    chosen = plain or found
    if len({layout.variant for layout in chosen}) == 1 and len(chosen) > 1:
        raise WeightsMismatch(
            f"'{folder}' has one set of weights twice, and nothing says which one counts.",
            f"found: {', '.join(layout.file.name for layout in chosen)}",
            fix="remove one of them",
        )
    if len(chosen) != 1:
        return []
    files = _shards(chosen[0].file) if chosen[0].is_sharded else [chosen[0].file]
    for file in files:
        _check_inside(file, folder)
    return files if all(file.is_file() for file in files) else []


def lack_of_weights(folder: Path) -> str | None:
    """Say why `weight_files` finds nothing in a folder, if there is more to say than that there is nothing."""
    found = layouts(folder)
    if len(found) > 1:
        names = ", ".join(layout.file.name for layout in found)
        return f"{folder.name}: several variants and no plain weights, nothing is chosen: {names}; keep one of them"
    if found and found[0].is_sharded:
        missing = [file.name for file in _shards(found[0].file) if not file.is_file()]
        return f"{folder.name}: {found[0].file.name} names files that are not there: {', '.join(missing[:3])}"
    if folder.is_dir() and any(folder.glob("*.bin")):
        return f"{folder.name}: there are .bin files, which are pickles and never read"
    return None


def _shards(index: Path) -> list[Path]:
    """List the files that an index names. Raises: WeightsMismatch."""
    found = read_json_object(index, error=WeightsMismatch, max_bytes=_MAX_BYTES)
    names = expect(found.get("weight_map"), dict, where=f"'{index}': weight_map", error=WeightsMismatch)
    bad = [name for name in names.values() if not _is_plain(name)]
    if bad or not names:
        raise WeightsMismatch(
            f"'{index}' names files that are not safetensors files beside it.",
            f"found: {', '.join(str(name)[:80] for name in bad[:3]) or 'no file at all'}",
            "allowed: names that end in .safetensors, without a folder; pickles are never read",
        )
    return [index.parent / name for name in sorted(set(names.values()))]


def _is_plain(name: object) -> bool:
    """Return whether a name is that of a safetensors file in the same folder, on any system."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or not name.isprintable():
        return False
    return PurePosixPath(name).name == name and PureWindowsPath(name).name == name


def _check_inside(file: Path, folder: Path) -> None:
    """Check that a file is not a link out of its part's folder; the hub's cache links to its own `blobs`.

    Raises: WeightsMismatch.
    """
    real = file.resolve()
    if real.is_relative_to(folder.resolve()) or not file.is_symlink():
        return
    for parent in folder.resolve().parents:
        if parent.name == "snapshots" and real.is_relative_to(parent.parent / "blobs"):
            return
    raise WeightsMismatch(
        f"'{file}' is a link to a file outside of its folder.",
        f"it leads to: {real}",
        fix="copy the file, or link the whole folder",
    )


def require_files(*folders: Path) -> None:
    """Check that each part has a config and safetensors weights. Raises: WeightsMissing, naming all parts without them;
    WeightsMismatch, see `weight_files`.

    A safetensors file in place of a folder needs no config.
    """
    lacking = [
        folder
        for folder in folders
        if not weight_files(folder) or not (folder.is_file() or (folder / CONFIG).is_file())
    ]
    if not lacking:
        return
    names = ", ".join(folder.name for folder in lacking)
    raise WeightsMissing(
        f"checkpoint '{folders[0].parent}' lacks a config.json or safetensors weights.",
        f"missing: {names} ({len(lacking)} of {len(folders)} parts)",
        *filter(None, map(lack_of_weights, lacking)),
        fix=SAVE_AGAIN,
    )
