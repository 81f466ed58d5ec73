"""The index of a shard set: files with counts and checksums, classes, attribute values, licence.

Reads and writes `index.json` (format: PROTOCOL.md), and finds the data sets that ship with the package by name.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, ShardError, unknown
from diffprobe.core.registry import DATASETS
from diffprobe.shards.annotation import Fields
from diffprobe.shards.scan import Scan, find_shards, split_of

SCHEMA_VERSION = 2
KIND = "shard_index"
INDEX_NAME = "index.json"
_INDEXED = ("json", "label", "class_name", "attributes")
"""Fields from which the index's classes and attribute values are read."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: file name, split, number of samples (faulty ones included), checksum and size in bytes."""

    file: str
    split: str
    n_samples: int
    sha256: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A set of shards as its index describes it.

    Attributes:
        name: what the set is called in results.
        root: folder of the shards.
        shards: the shards, sorted by file name.
        classes: class names; a label is an index into it.
        attributes: attribute name -> sorted values; an attribute id is an index into them.
        licence: terms of the images.
        faults: one message per faulty sample, for a set indexed with `on_error="skip"`.
        fields: names of the files and keys of a sample, as the set was indexed.
        newer: shards modified after the index was written; streams verify their checksums.
    """

    name: str
    root: Path
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    licence: str
    faults: tuple[str, ...] = ()
    fields: Fields = Fields()
    newer: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the content: shards, classes and attribute values. Folders and dates are not part of it."""
        shards = [[shard.file, shard.sha256] for shard in self.shards]
        return digest_json({"shards": shards, "classes": self.classes, "attributes": self.attributes})

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits, sorted."""
        return tuple(sorted({shard.split for shard in self.shards}))

    def shards_of(self, split: str) -> tuple[ShardInfo, ...]:
        """Return the shards of a split in order. Raises: UnknownName listing the splits."""
        found = tuple(shard for shard in self.shards if shard.split == split)
        if not found:
            raise unknown(f"split of '{self.name}'", split, self.splits())
        return found

    def n_samples(self, split: str) -> int:
        """Return the number of samples of a split."""
        return sum(shard.n_samples for shard in self.shards_of(split))

    def fields_for(self, asked: Fields | None) -> Fields:
        """Return the field names to read samples with: `asked`, and the index's where `asked` has the default.

        The image and the captions may be read from other fields than at indexing.

        Raises: ConfigError for other names of the fields that classes and attribute ids were read from.
        """
        chosen = {name: getattr(asked, name) for name in _changed(asked or Fields())}
        names = replace(self.fields, **chosen)
        had, wanted = asdict(self.fields), asdict(names)
        wrong = [name for name in _INDEXED if had[name] != wanted[name]]
        if wrong:
            raise ConfigError(
                f"the index of '{self.name}' was made with other field names than requested.",
                *(f"{name}: index '{had[name]}', requested '{wanted[name]}'" for name in wrong),
                fix=f"remove them from data.fields (--field), or {_fix(self.root, names)}",
            )
        return names

    def check(self, file: str) -> None:
        """Compare the checksum of a shard with the index. Raises: ShardError if the shard has changed."""
        (shard,) = (shard for shard in self.shards if shard.file == file)
        path = self.root / file
        if _digest_once(path, path.stat().st_size, path.stat().st_mtime_ns) != shard.sha256:
            raise ShardError(
                f"{file}: the shard has changed since it was indexed (sha256 differs).",
                fix=f"copy the shard again, or {_fix(self.root, self.fields)}",
            )

    @classmethod
    def load(cls, path_or_name: str | Path) -> "ShardSet":
        """Open a shard set by its folder, its index file, or the name of a shipped data set ("emoji").

        Presence and size of the shards are verified here, checksums of shards newer than the index when a stream opens
        them. `diffprobe data verify` compares all checksums and decodes every image.

        Raises: ShardError for a folder without an index or with other shards than its index lists, SchemaError for an
            index of another kind or version.
        """
        index = _find(path_or_name)
        record = read_json(index, kind=KIND, schema_version=SCHEMA_VERSION, remake=lambda old: _again(index, old))
        try:
            shards = tuple(ShardInfo(**shard) for shard in record["shards"])
            attributes = {name: tuple(values) for name, values in record["attributes"].items()}
            root = index.parent / record.get("root", "")
            name, licence, faults = record["name"], record["licence"], tuple(record["faults"])
            shard_set = cls(
                name=name, root=root, shards=shards, classes=tuple(record["classes"]), attributes=attributes,
                licence=licence, faults=faults, fields=_read_fields(record.get("fields", {})),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise SchemaError(
                f"'{index}' is not a complete shard index ({error!r}).", fix=_fix(index.parent)
            ) from error
        return replace(shard_set, newer=_check_files(shard_set, index))


def build_index(
    root: Path,
    *,
    name: str,
    licence: str,
    fields: Fields | None = None,
    index_path: Path | None = None,
    on_error: str = "raise",
    on_shard: Callable[[str], None] = lambda file: None,
) -> ShardSet:
    """Scan the shards of a folder (`<split>-NNNN.tar[.gz]`) and write their index.

    Keys and annotations are validated, images are not decoded. Classes are sorted by label; where samples have class
    names only, labels follow the alphabetical order.

    Args:
        root: folder of the shards.
        name: what the set is called in results.
        licence: terms of the images, with attribution where they ask for it.
        fields: names of the files and keys of a sample; the defaults of `Fields` if None. Written to the index.
        index_path: the file to write, `root/index.json` if None; another folder if `root` is read-only.
        on_error: "raise" reports all faulty samples and writes no index; "skip" lists them in the index. Streams
            handle them by their own `on_error`.
        on_shard: called with each file name before the shard is read.

    Raises: ShardError for missing or misnamed shards, faulty samples, or conflicting labels; DuplicateKey for a key
        that occurs twice in the set, over all splits.
    """
    root = Path(root)
    scan = Scan(fields or Fields())
    shards = []
    for path in find_shards(root):
        on_shard(path.name)
        count, size = scan.shard(path), path.stat().st_size
        digest = digest_file(path)
        shards.append(ShardInfo(file=path.name, split=split_of(path), n_samples=count, sha256=digest, n_bytes=size))
    faults = scan.all_faults()
    if faults and on_error == "raise":
        more = [f"... and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise ShardError(
            f"'{root}' has {len(faults)} faults; no index was written.", *faults[:10], *more,
            fix="repair the shards, or index them with --on-error skip",
        )  # fmt: skip
    shard_set = ShardSet(
        name=name,
        root=root,
        shards=tuple(shards),
        classes=scan.classes(),
        attributes={key: tuple(sorted(values)) for key, values in sorted(scan.values.items())},
        licence=licence,
        faults=tuple(faults),
        fields=scan.fields,
    )
    path = root / INDEX_NAME if index_path is None else Path(index_path)
    try:
        _write(shard_set, path)
    except OSError as error:
        raise ShardError(
            f"cannot write the index to '{path}' ({error.strerror}).",
            fix=f"{_fix(root, scan.fields)} --out FOLDER/{INDEX_NAME}",
        ) from error
    return shard_set


def shipped() -> dict[str, Path]:
    """Return the index files of the data sets that ship with the package, by name."""
    assets = Path(str(files("diffprobe") / "assets"))
    found = {name: assets / name / INDEX_NAME for name in DATASETS.names()}
    return {name: index for name, index in found.items() if index.is_file()}


def _find(path_or_name: str | Path) -> Path:
    """Return the index file of a folder, an index file, or a shipped data set."""
    inside, path = shipped(), Path(path_or_name)
    if str(path_or_name) in inside:
        return inside[str(path_or_name)]
    if path.is_file():
        return path
    if not path.is_dir():
        name = str(path_or_name)
        raise ShardError(
            f"shard set '{path_or_name}' not found.",
            f"expected: a folder, an index file, or a shipped data set ({', '.join(inside)})",
            fix=f"build it: diffprobe data build {name} --out FOLDER" if name in DATASETS.names() else None,
        )
    if not (path / INDEX_NAME).is_file():
        raise ShardError(f"the folder '{path}' has no {INDEX_NAME}.", fix=_fix(path))
    return path / INDEX_NAME


def _fix(root: Path, fields: Fields | None = None) -> str:
    options = "".join(f" --field {option}" for option in _options(fields or Fields()))
    return f"diffprobe data index {root} --name NAME --licence LICENCE{options}"


def _again(index: Path, old: dict[str, Any]) -> str:
    """Return the command that makes an index anew."""
    elsewhere = isinstance(old.get("root"), str)
    root = index.parent / old["root"] if elsewhere else index.parent
    return f"index the set again: {_fix(root)}{f' --out {index}' if elsewhere else ''}"


def _changed(names: Fields) -> list[str]:
    """List the fields whose names differ from the defaults."""
    return [name for name, value in asdict(Fields()).items() if getattr(names, name) != value]


def _options(names: Fields) -> list[str]:
    """Format the names that differ from the defaults as values of `--field`: "label=fine", "image=png,jpg"."""
    values = {name: getattr(names, name) for name in _changed(names)}
    return [f"{name}={','.join(v) if isinstance(v, tuple) else v}" for name, v in values.items()]


def _read_fields(record: dict[str, Any]) -> Fields:
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Fields(**values)


def _check_files(shard_set: ShardSet, index: Path) -> tuple[str, ...]:
    """Compare presence and size of the shards with the index.

    Returns: the shards newer than the index. Tars are padded, so a rewritten one often has the size of the old one.
    Raises: ShardError listing all shards that differ.
    """
    wrong, newer, indexed = [], [], index.stat().st_mtime_ns
    for shard in shard_set.shards:
        path = shard_set.root / shard.file
        if not path.is_file():
            wrong.append(f"missing: {shard.file}")
        elif path.stat().st_size != shard.n_bytes:
            wrong.append(f"changed: {shard.file} has {path.stat().st_size:,} bytes, {shard.n_bytes:,} in the index")
        elif path.stat().st_mtime_ns > indexed:
            newer.append(shard.file)
    if wrong:
        raise ShardError(
            f"the shards in '{shard_set.root}' differ from the index '{index}'.",
            f"{len(wrong)} of {len(shard_set.shards)} differ:",
            *wrong[:10], fix=f"copy the shards again, or {_fix(shard_set.root, shard_set.fields)}",
        )  # fmt: skip
    return tuple(newer)


@cache
def _digest_once(path: Path, n_bytes: int, changed_ns: int) -> str:
    """Hash a file once per process, size and modification time."""
    return digest_file(path)


def _write(shard_set: ShardSet, path: Path) -> None:
    body = {**asdict(shard_set), "digest": shard_set.digest}
    del body["newer"]
    if shard_set.fields == Fields():
        del body["fields"]
    if path.parent.resolve() == shard_set.root.resolve():
        del body["root"]
    else:
        body["root"] = str(shard_set.root.resolve())
    # any version of the package that writes this schema writes the same bytes, so the header has no package version
    made_by = f"diffprobe shard index {SCHEMA_VERSION}"
    write_artifact(path, body, kind=KIND, schema_version=SCHEMA_VERSION, made_by=made_by)


def render(shard_set: ShardSet) -> str:
    """Format a summary of a shard set: samples per split, classes, attributes, faults, licence."""
    lines = [f"{shard_set.name}: {len(shard_set.shards)} shards in {shard_set.root}, digest {shard_set.digest[:16]}"]
    for split in shard_set.splits():
        lines.append(f"  {split}: {shard_set.n_samples(split):,} samples in {len(shard_set.shards_of(split))} shards")
    lines.append(f"  classes: {len(shard_set.classes)}")
    lines += [f"  attribute {name}: {len(values)} values" for name, values in shard_set.attributes.items()]
    if options := _options(shard_set.fields):
        lines.append(f"  fields: {' '.join(options)}")
    lines.append(f"  licence: {shard_set.licence}")
    if shard_set.faults:
        lines += [f"  indexed with {len(shard_set.faults)} faults:", *(f"    {fault}" for fault in shard_set.faults)]
    return "\n".join(lines)
