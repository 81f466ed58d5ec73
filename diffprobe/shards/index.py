"""The index of a shard set: files with counts and checksums, classes, attribute values, licence.

Owns `index.json` (format: PROTOCOL.md) and the names of data sets that ship with the package. Streams read it first.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffprobe.core.artifact import make_header, read_json, write_json_atomic
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, ShardError, unknown
from diffprobe.shards.annotation import Fields
from diffprobe.shards.scan import Scan, find_shards, split_of

SCHEMA_VERSION = 1
KIND = "shard_index"
INDEX_NAME = "index.json"
_INDEXED = ("json", "label", "class_name", "attributes")
"""Fields that the index's classes and attribute values were read from."""
SHIPPED = ("emoji",)
"""Data sets inside the package, found by name."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: file name, split, number of samples (faulty ones count), checksum and size in bytes."""

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
        shards: by file name.
        classes: class names; a label is an index into it.
        attributes: values by attribute name, sorted; an attribute id is an index into them.
        licence: terms of the images.
        faults: faulty samples that were indexed on purpose, one message each.
        fields: which file and key of a sample holds what, as the set was indexed.
        newer: files written after the index, which may be others than those it describes.
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
        """sha256 of what fixes the content: the shards, and what labels and attribute ids mean. No folder enters it."""
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
        """Return the names that samples are read under: those of the index where `asked` is left at the defaults.

        Image and captions may be read under other names than those of the index.

        Raises: ConfigError for other names of what labels and attribute ids were read from.
        """
        chosen = {name: getattr(asked, name) for name in _changed(asked or Fields())}
        names = replace(self.fields, **chosen)
        had, wanted = asdict(self.fields), asdict(names)
        wrong = [name for name in _INDEXED if had[name] != wanted[name]]
        if wrong:
            raise ConfigError(
                f"the index of '{self.name}' was made under other names than those asked for.",
                *(f"{name}: index '{had[name]}', asked '{wanted[name]}'" for name in wrong),
                fix=f"leave them out of data.fields (--field), or {_fix(self.root, names)}",
            )
        return names

    def check(self, file: str) -> None:
        """Compare the checksum of a shard with the index. Raises: ShardError if it has changed since."""
        (shard,) = (shard for shard in self.shards if shard.file == file)
        path = self.root / file
        if _digest_once(path, path.stat().st_size, path.stat().st_mtime_ns) != shard.sha256:
            raise ShardError(
                f"{file}: the shard has changed since it was indexed (sha256 differs).",
                fix=f"copy the shard again, or {_fix(self.root, self.fields)}",
            )

    @classmethod
    def load(cls, path_or_name: str | Path) -> "ShardSet":
        """Open a shard set by its folder, its index file, or the name of a shipped set ("emoji").

        Files are compared by presence and size, those written after the index by their checksum when a stream opens
        them; `diffprobe data verify` compares all checksums and decodes every image.

        Raises: ShardError for a folder without index or shards that don't fit it, SchemaError for a foreign file.
        """
        index = _find(path_or_name)
        record = read_json(index, kind=KIND, schema_version=SCHEMA_VERSION)
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

    Keys and annotations are checked, images are not decoded. Classes are listed by label; a class that only has a name
    gets its label by alphabetical order.

    Args:
        root: folder of the shards.
        name: what the set is called in results.
        licence: terms of the images, with attribution where they ask for it.
        fields: which file and key holds what; the defaults of `Fields` if None. They go into the index.
        index_path: where to write, `root/index.json` if None; elsewhere for a read-only folder.
        on_error: "raise" refuses faulty samples, all at once; "skip" indexes the set and lists them in the index.
            Streams will meet them again and judge by their own `on_error`.
        on_shard: called with each file name before it is read, for progress.

    Raises: ShardError for no or misnamed shards, faulty samples, or labels at odds; DuplicateKey for a key that stands
        twice in the set, over all splits.
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
            fix="repair the shards, or index them as they are with --on-error skip",
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
            f"the index can't be written to '{path}' ({error.strerror}).",
            fix=f"{_fix(root, scan.fields)} --out FOLDER/{INDEX_NAME}",
        ) from error
    return shard_set


def _find(path_or_name: str | Path) -> Path:
    """Find the index file of a folder, an index file, or a shipped name."""
    if str(path_or_name) in SHIPPED:
        return Path(str(files("diffprobe") / "assets" / str(path_or_name))) / INDEX_NAME
    path = Path(path_or_name)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ShardError(
            f"there is no shard set '{path_or_name}'.", f"looked for: a folder, an index file, or {', '.join(SHIPPED)}"
        )
    if not (path / INDEX_NAME).is_file():
        raise ShardError(f"the folder '{path}' has no {INDEX_NAME}.", fix=_fix(path))
    return path / INDEX_NAME


def _fix(root: Path, fields: Fields | None = None) -> str:
    options = "".join(f" --field {option}" for option in _options(fields or Fields()))
    return f"diffprobe data index {root} --name NAME --licence LICENCE{options}"


def _changed(names: Fields) -> list[str]:
    """List the fields whose names are not the default ones."""
    return [name for name, value in asdict(Fields()).items() if getattr(names, name) != value]


def _options(names: Fields) -> list[str]:
    """Write what differs from the default names, as `--field` takes it: "label=fine", "image=png,jpg"."""
    values = {name: getattr(names, name) for name in _changed(names)}
    return [f"{name}={','.join(v) if isinstance(v, tuple) else v}" for name, v in values.items()]


def _read_fields(record: dict[str, Any]) -> Fields:
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Fields(**values)


def _check_files(shard_set: ShardSet, index: Path) -> tuple[str, ...]:
    """Compare the shards with the index by presence and size, and report all that differ at once.

    Returns: the files that are newer than the index. A tar is padded: one written anew often has the size of the old.
    """
    wrong, newer, indexed = [], [], index.stat().st_mtime_ns
    for shard in shard_set.shards:
        path = shard_set.root / shard.file
        if not path.is_file():
            wrong.append(f"missing: {shard.file}")
        elif path.stat().st_size != shard.n_bytes:
            wrong.append(f"changed: {shard.file} has {path.stat().st_size:,} bytes, the index says {shard.n_bytes:,}")
        elif path.stat().st_mtime_ns > indexed:
            newer.append(shard.file)
    if wrong:
        raise ShardError(
            f"the shards in '{shard_set.root}' are not those of '{index}'.",
            f"{len(wrong)} of {len(shard_set.shards)} differ:",
            *wrong[:10], fix=f"copy the shards again, or {_fix(shard_set.root, shard_set.fields)}",
        )  # fmt: skip
    return tuple(newer)


@cache
def _digest_once(path: Path, n_bytes: int, changed_ns: int) -> str:
    """Hash a file once a process, as long as neither its size nor its time of change does change."""
    return digest_file(path)


def _write(shard_set: ShardSet, path: Path) -> None:
    header = make_header(KIND, SCHEMA_VERSION, digest=shard_set.digest)
    # The index is rebuilt byte for byte by any version that writes this schema, so no package version stands in it.
    header["made_by"] = f"diffprobe shard index {SCHEMA_VERSION}"
    body = asdict(shard_set)
    del body["newer"]
    if shard_set.fields == Fields():
        del body["fields"]
    if path.parent.resolve() == shard_set.root.resolve():
        del body["root"]
    else:
        body["root"] = str(shard_set.root.resolve())
    write_json_atomic(path, {"header": header, **body})


def render(shard_set: ShardSet) -> str:
    """Describe a shard set for people: samples by split, classes, attributes, faults, licence."""
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
