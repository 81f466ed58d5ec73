"""The index of a shard set: files with counts and checksums, classes, attribute values, licence.

Reads and writes `index.json` (format: PROTOCOL.md), and finds the data sets that ship with the package by name.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.digest import digest_file, digest_file_once, digest_json
from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError, ShardError, unknown
from diffprobe.core.json_file import expect
from diffprobe.core.patience import NO_PATIENCE, Patience, try_again
from diffprobe.core.registry import DATASETS
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.reader import RawSample, read_shard, storage_error
from diffprobe.shards.scan import CAPTION, LABEL, Gap, Scan
from diffprobe.shards.shard_names import build_command, find_shards, more_lines, splits_not_named, splits_of
from diffprobe.shards.shared_groups import (
    SINGLE_SAMPLES,
    SharedGroups,
    find_shared_groups,
    parse_shared_groups,
)

SCHEMA_VERSION = 2
KIND = "shard_index"
INDEX_NAME = "index.json"
_MAX_SAMPLES = 2**40
"""Largest number of samples of a shard, far above what a disk holds."""
_INDEXED = ("json", "label", "class_name", "attributes")
"""Fields from which the index's classes and attribute values are read."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard.

    Attributes:
        file: path in the folder of the set, with slashes.
        split: name of its split.
        n_samples: number of samples, faulty ones included.
        sha256, n_bytes: checksum and size of the file.
        missing: column (`caption`, `label`, or an attribute) -> the valid samples without a value: their number, and
            position and key of the first one. Columns that all samples have are not listed.
    """

    file: str
    split: str
    n_samples: int
    sha256: str
    n_bytes: int
    missing: dict[str, Gap] = field(default_factory=dict, hash=False)


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
        renamed: attribute name in the JSON of a sample -> its name in the set.
        newer: shards modified after the index was written; streams verify their checksums.
        grouped_by: attribute whose samples are not independent, such as the person or the drawing; see `group`.
        shared_groups: groups that two splits share, of a set that was indexed with `grouped_by`.
        patience: how long a shard is tried again while its storage is away.
    """

    name: str
    root: Path
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    licence: str
    faults: tuple[str, ...] = ()
    fields: Fields = Fields()
    renamed: dict[str, str] = field(default_factory=dict)
    newer: tuple[str, ...] = field(default=(), compare=False)
    grouped_by: str | None = None
    shared_groups: tuple[SharedGroups, ...] = ()
    patience: Patience = field(default=NO_PATIENCE, compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the content: shards, classes and attribute values. Folders and dates are not part of it.

        File names have the splits; those that were assigned by patterns are part of the content.
        """
        shards = [[shard.file, shard.sha256] for shard in self.shards]
        content = {"shards": shards, "classes": self.classes, "attributes": self.attributes}
        assigned = splits_not_named({shard.file: shard.split for shard in self.shards})
        further = {"renamed": self.renamed, "splits": assigned, "group": self.grouped_by}
        return digest_json({**content, **{name: value for name, value in further.items() if value}})

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Class name -> its label."""
        return {name: label for label, name in enumerate(self.classes)}

    @cached_property
    def attribute_ids(self) -> dict[str, dict[str, int]]:
        """Attribute name -> value -> its id."""
        return {name: {value: i for i, value in enumerate(values)} for name, values in self.attributes.items()}

    @property
    def group(self) -> str | None:
        """The attribute whose samples are not independent, by the index or the card of the data set; None for none."""
        if self.grouped_by is not None or self.name not in DATASETS.names():
            return self.grouped_by
        group: str | None = DATASETS.load(self.name).CARD.group
        return group if group in self.attributes else None

    @cached_property
    def _by_file(self) -> dict[str, ShardInfo]:
        return {shard.file: shard for shard in self.shards}

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
        """Compare the checksum of a shard with the index, once per process while the file stays the same.

        Raises: ShardError if the shard has changed, or if its storage stays away; OSError without patience.
        """
        path = self.root / file

        def failed(error: OSError, tried: str) -> ShardError:
            return storage_error(file, error, tried, f"file: {path}")

        digest = try_again(lambda: digest_file_once(path), f"shard {file}", self.patience, failed)
        if digest != self._by_file[file].sha256:
            raise ShardError(
                f"{file}: the shard has changed since it was indexed (sha256 differs).",
                fix=f"copy the shard again, or {_fix(self.root, self.fields)}",
            )

    def read(self, file: str, *, caps: Caps | None = None) -> Iterator[RawSample]:
        """Yield the samples of a shard in order (see `read_shard`), with the patience of the set."""
        n_bytes = self._by_file[file].n_bytes
        return read_shard(self.root / file, name=file, caps=caps, n_bytes=n_bytes, patience=self.patience)

    @classmethod
    def load(cls, path_or_name: str | Path, *, storage_patience: float = 0.0) -> "ShardSet":
        """Open a shard set by its folder, its index file, or the name of a shipped data set ("emoji").

        The index is compared with the digest in its header. Presence and size of the shards are verified here, their
        checksums when a stream opens them. `diffprobe data verify` also decodes every image.

        Args:
            storage_patience: seconds for which a shard that is here now is tried again while its storage is away.

        Raises: ShardError for a folder without an index or with other shards than its index lists, SchemaError for an
            index of another kind or version, or one that was modified.
        """
        index = _find(path_or_name)
        record = read_json(index, kind=KIND, schema_version=SCHEMA_VERSION, remake=lambda old: _remake(index, old))
        try:
            shard_set = _parse(record, index.parent)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            cause = error.what if isinstance(error, DiffprobeError) else f"{type(error).__name__}: {error}"
            raise SchemaError(
                f"'{index}' is not a complete shard index ({cause}).", fix=_remake(index, record)
            ) from error
        patience = Patience(seconds=storage_patience)
        return replace(shard_set, newer=_check_files(shard_set, index), patience=patience)


def build_index(
    root: Path,
    *,
    name: str,
    licence: str,
    fields: Fields | None = None,
    index_path: Path | None = None,
    on_error: str = "raise",
    on_shard: Callable[[str], object] = lambda file: None,
    split: str | None = None,
    assigned: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    number_duplicates: bool = False,
    caps: Caps | None = None,
    grouped_by: str | None = None,
) -> ShardSet:
    """Scan the shards of a folder and write their index.

    Keys and annotations are validated, images are not decoded. Classes are sorted by label; where samples have class
    names only, labels follow the alphabetical order.

    Args:
        root: folder of the shards; shards in its subfolders belong to the set.
        name: what the set is called in results.
        licence: terms of the images, with attribution where they ask for it.
        fields: names of the files and keys of a sample; the defaults of `Fields` if None. Written to the index.
        index_path: the file to write, `root/index.json` if None; another folder if `root` is read-only.
        on_error: "raise" reports all faulty samples and writes no index; "skip" lists them in the index. Streams
            handle them by their own `on_error`.
        on_shard: called with each file name before the shard is read.
        split: the split of the shards that have none in their names (see `shard_names.splits_of`).
        assigned: pattern of paths -> the split of the shards that it matches.
        renamed: attribute name in the JSON -> its name in the set. Written to the index.
        number_duplicates: append the label to class names that several labels have.
        caps: largest parts of a sample that are read.
        grouped_by: see `ShardSet`. Written to the index; "sample": the samples are independent.

    Raises: ConfigError for a group that is not an attribute; ShardError for missing or misnamed shards, faulty samples,
        attribute names that cannot be kept apart, or conflicting labels; DuplicateKey for a key that occurs twice in
        the set, over all splits.
    """
    root = Path(root)
    scan = Scan(fields or Fields(), renamed=renamed, caps=caps, group=grouped_by)
    paths = {path.relative_to(root).as_posix(): path for path in find_shards(root)}
    splits = splits_of(list(paths), split=split, assigned=assigned)
    scanned = []
    for file, path in paths.items():
        on_shard(file)
        found = scan.shard(path, name=file, split=splits[file])
        info = ShardInfo(
            file=file, split=splits[file], n_samples=found.n_samples, sha256=digest_file(path),
            n_bytes=path.stat().st_size,
        )  # fmt: skip
        scanned.append((info, found))
    if not any(info.n_samples for info, _ in scanned):
        raise ShardError(f"no shard in '{root}' has a sample.", f"shards: {', '.join(list(paths)[:10])}")
    faults = scan.all_faults()
    if faults and on_error == "raise":
        raise ShardError(
            f"'{root}' has {len(faults)} faults; no index was written.", *faults[:10], *more_lines(faults, 10),
            fix=_fault_fix(scan, root),
        )  # fmt: skip
    scan.check_columns()
    columns = {CAPTION, LABEL, *scan.values}
    grouped_by = None if grouped_by == SINGLE_SAMPLES else grouped_by
    if grouped_by is not None and grouped_by not in scan.values:
        raise unknown("--group (attribute)", grouped_by, scan.values, ConfigError)
    shard_set = ShardSet(
        name=name,
        root=root,
        shards=tuple(replace(info, missing=found.missing_of(columns)) for info, found in scanned),
        classes=scan.classes(number_duplicates=number_duplicates),
        attributes={key: tuple(sorted(values)) for key, values in sorted(scan.values.items())},
        licence=licence,
        faults=tuple(faults),
        fields=scan.fields,
        renamed=scan.renamed,
        grouped_by=grouped_by,
        shared_groups=find_shared_groups(scan.groups),
    )
    path = root / INDEX_NAME if index_path is None else Path(index_path)
    try:
        write_index(shard_set, path)
    except OSError as error:
        raise ShardError(
            f"cannot write the index to '{path}' ({error.strerror}).",
            fix=f"{_fix(root, scan.fields)} --out FOLDER/{INDEX_NAME}",
        ) from error
    return shard_set


def _fault_fix(scan: Scan, root: Path) -> str:
    """Return the fix of a listing of faults: the one of most samples, where they have one."""
    common = [fix for fix, _ in scan.fixes.most_common(1)]
    if common and common[0].startswith("--"):
        return f"{_fix(root, scan.fields)} {common[0]}"
    return common[0] if common else "repair the shards, or index them with --on-error skip"


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
            fix=f"build it: diffprobe data build {name} --out FOLDER"
            if name in DATASETS.names() and name not in ("folder", "hub")
            else "your own images: diffprobe data build folder DIR --out SHARDS, then data.path=SHARDS",
        )
    if not (path / INDEX_NAME).is_file():
        command = build_command(path)
        if command is not None:
            raise ShardError(
                f"the folder '{path}' has no {INDEX_NAME}; it has images, not shards.",
                fix=f"{command}, then data.path=SHARDS",
            )
        raise ShardError(
            f"the folder '{path}' has no {INDEX_NAME}.",
            "shards of other tools (img2dataset, webdataset): diffprobe data adopt finds the names of their fields",
            fix=_fix(path),
        )
    return path / INDEX_NAME


def _fix(root: Path, fields: Fields | None = None) -> str:
    options = "".join(f" --field {option}" for option in _options(fields or Fields()))
    return f"diffprobe data index {root} --name NAME --licence LICENCE{options}"


def _changed(names: Fields) -> list[str]:
    """List the fields whose names differ from the defaults."""
    return [name for name, value in asdict(Fields()).items() if getattr(names, name) != value]


def _options(names: Fields) -> list[str]:
    """Format the names that differ from the defaults as values of `--field`: "label=fine", "image=png,jpg"."""
    values = {name: getattr(names, name) for name in _changed(names)}
    return [f"{name}={','.join(v) if isinstance(v, tuple) else v}" for name, v in values.items()]


def _remake(index: Path, old: Mapping[str, Any]) -> str:
    """Return the command that writes an index again, with the name and licence of the old one where it has them."""
    names = {key: old[key] if isinstance(old.get(key), str) else key.upper() for key in ("name", "licence")}
    options = " ".join(f"--{key} {shlex.quote(value)}" for key, value in names.items())
    elsewhere = isinstance(old.get("root"), str)
    root = index.parent / old["root"] if elsewhere else index.parent
    return f"index the set again: diffprobe data index {root} {options}{f' --out {index}' if elsewhere else ''}"


def _parse(record: Mapping[str, Any], folder: Path) -> ShardSet:
    """Read the body of an index. Raises: SchemaError, KeyError or TypeError for a missing or wrong part."""
    attributes = expect(record["attributes"], dict, where="attributes")
    shard_set = ShardSet(
        name=expect(record["name"], str, where="name"),
        root=folder / expect(record.get("root", ""), str, where="root"),
        shards=tuple(_parse_shard(shard) for shard in expect(record["shards"], list, where="shards")),
        classes=_texts(record["classes"], "classes"),
        attributes={name: _texts(values, f"attribute '{name}'") for name, values in attributes.items()},
        licence=expect(record["licence"], str, where="licence"),
        faults=_texts(record["faults"], "faults"),
        fields=_read_fields(expect(record.get("fields", {}), dict, where="fields")),
        renamed={old: expect(new, str, where="renamed") for old, new in record.get("renamed", {}).items()},
        grouped_by=expect(record["grouped_by"], str, where="grouped_by") if "grouped_by" in record else None,
        shared_groups=parse_shared_groups(record.get("shared_groups", [])),
    )
    if shard_set.grouped_by not in (None, *attributes):
        raise SchemaError(f"its group '{shard_set.grouped_by}' is not an attribute")
    if faults := describe_faults(column_faults(attributes)):
        raise SchemaError(f"{faults[0]}.")
    for what, names in (("classes", shard_set.classes), *shard_set.attributes.items()):
        if len(set(names)) < len(names):
            raise SchemaError(f"{what} has a name twice")
    if not shard_set.shards:
        raise SchemaError("it lists no shard")
    if len({shard.file for shard in shard_set.shards}) < len(shard_set.shards):
        raise SchemaError("a shard is listed twice")
    return shard_set


def _parse_shard(record: Any) -> ShardInfo:
    shard = ShardInfo(**expect(record, dict, where="shards"))
    for name, kind in (("file", str), ("split", str), ("n_samples", int), ("sha256", str), ("n_bytes", int)):
        expect(getattr(shard, name), kind, where=f"shards: {name}")
    path = PurePosixPath(shard.file)
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in shard.file:
        raise SchemaError(f"shard '{shard.file}' is outside of the folder")
    if not 0 <= shard.n_samples <= _MAX_SAMPLES:
        raise SchemaError(f"shard '{shard.file}' has {shard.n_samples} samples")
    gaps = expect(shard.missing, dict, where="shards: missing")
    return replace(shard, missing={name: (int(n), int(place), str(key)) for name, (n, place, key) in gaps.items()})


def _texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(expect(text, str, where=where) for text in expect(value, list, where=where))


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


def write_index(shard_set: ShardSet, path: Path) -> None:
    """Write the index of a shard set. Raises: OSError."""
    body = {**asdict(shard_set), "digest": shard_set.digest}
    del body["newer"], body["patience"]
    if shard_set.fields == Fields():
        del body["fields"]
    for name in ("renamed", "grouped_by", "shared_groups"):
        if not body[name]:
            del body[name]
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
    gaps = missing_counts(shard_set.shards)
    lines += [
        f"  attribute {name}: {len(values)} values" + (f", {gaps[name]:,} samples without" if gaps.get(name) else "")
        for name, values in shard_set.attributes.items()
    ]
    lines += [f"  {gaps[name]:,} samples without {name}" for name in (CAPTION, LABEL) if gaps.get(name)]
    empty = [shard.file for shard in shard_set.shards if not shard.n_samples]
    lines += [f"  {len(empty)} shards without a sample: {', '.join(empty[:5])}"] if empty else []
    if shard_set.group:
        lines.append(f"  group: {shard_set.group} (its values stay in one split of data.val_fraction)")
    if shard_set.renamed:
        lines.append(f"  renamed: {', '.join(f'{old} to {new}' for old, new in shard_set.renamed.items())}")
    if options := _options(shard_set.fields):
        lines.append(f"  fields: {' '.join(options)}")
    lines.append(f"  licence: {shard_set.licence}")
    if shard_set.faults:
        lines += [f"  indexed with {len(shard_set.faults)} faults:", *(f"    {fault}" for fault in shard_set.faults)]
    return "\n".join(lines)


def missing_counts(shards: Sequence[ShardInfo]) -> Counter[str]:
    """Return column -> number of valid samples without a value, over some shards."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update({name: n for name, (n, _, _) in shard.missing.items()})
    return counts
