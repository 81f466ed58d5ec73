"""One pass over the shards of a folder that collects keys, labels, attribute values and faults. Used by index.py."""

import re
from pathlib import Path

from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.annotation import Annotation, Fields, fault, image_field, parse_annotation
from diffprobe.shards.reader import RawSample, read_shard

SHARD_NAME = re.compile(r"(?P<split>.+)-\d+\.tar(\.gz)?")
NAMES = "allowed: <split>-<number>.tar[.gz], for example train-0000.tar"


class Scan:
    """Keys, labels with their names, attribute values and faults of a set's shards."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.keys: dict[str, str] = {}
        self.names: dict[int, str | None] = {}
        self.unlabelled: set[str] = set()
        self.values: dict[str, set[str]] = {}
        self.faults: list[str] = []
        self._annotated = 0
        self._bare: list[str] = []

    def shard(self, path: Path) -> int:
        """Read one shard and return its number of samples, faulty ones included. Raises: DuplicateKey, ShardError."""
        orphans: list[str] = []
        count = 0
        for raw in read_shard(path, orphans=orphans):
            count += 1
            if raw.key in self.keys:
                raise DuplicateKey(f"{raw.shard}: key '{raw.key}' also occurs in {self.keys[raw.key]}.")
            self.keys[raw.key] = raw.shard
            try:
                self._sample(raw)
            except SampleError as error:
                self.faults.append(error.what)
        self.faults += [f"{path.name}: {orphan}." for orphan in orphans]
        if not count:
            raise ShardError(f"{path.name}: the shard has no sample.", f"file: {path}")
        return count

    def _sample(self, raw: RawSample) -> None:
        image_field(raw, self.fields)
        annotation = parse_annotation(raw, self.fields)
        if raw.files.keys() & {self.fields.json, "cls", "txt"}:
            self._annotated += 1
        else:
            self._bare.append(fault(raw, f"no annotation ({self.fields.json}), while other samples have one").what)
        for key, value in annotation.attributes.items():
            self.values.setdefault(key, set()).add(value)
        self._class(raw, annotation)

    def all_faults(self) -> list[str]:
        """List all faults. Either all samples have an annotation or none has; a missing one is a fault otherwise."""
        return [*self.faults, *(self._bare if self._annotated else [])]

    def _class(self, raw: RawSample, annotation: Annotation) -> None:
        label, name = annotation.label, annotation.class_name
        if label is None:
            if name is not None:
                self.unlabelled.add(name)
            return
        known = self.names.get(label)
        if name is not None and known is not None and name != known:
            raise fault(raw, f"label {label} is '{name}' here and '{known}' in another sample")
        self.names[label] = known if name is None else name

    def classes(self) -> tuple[str, ...]:
        """Return class names by label; the name of an unnamed or unused label is its number."""
        if not self.names:
            return tuple(sorted(self.unlabelled))
        named = [self.names.get(label) or str(label) for label in range(max(self.names) + 1)]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ShardError(f"class name '{twice[0]}' is used for several labels.")
        unnumbered = sorted(self.unlabelled - set(named))
        if unnumbered:
            raise ShardError(f"class '{unnumbered[0]}' has no label in any sample, while other classes have one.")
        return tuple(named)


def split_of(path: Path) -> str:
    """Return the split of a shard by its file name.

    >>> split_of(Path("train-0003.tar.gz"))
    'train'
    """
    match = SHARD_NAME.fullmatch(path.name)
    if match is None:
        raise ShardError(f"the shard name '{path.name}' has no split.", NAMES)
    return match["split"]


def find_shards(root: Path) -> list[Path]:
    """List the shards of a folder, sorted by name. Raises: ShardError for a missing folder, no shard, or a bad name."""
    if not root.is_dir():
        raise ShardError(f"folder '{root}' not found.")
    tars = sorted(path for path in root.iterdir() if path.name.endswith((".tar", ".tar.gz")) and path.name[0] != ".")
    if not tars:
        raise ShardError(f"no shard in '{root}'.", "looked for: <split>-0000.tar or <split>-0000.tar.gz")
    misnamed = [path.name for path in tars if not SHARD_NAME.fullmatch(path.name)]
    if misnamed:
        raise ShardError(
            f"'{root}' has shards without a split in their name: {', '.join(misnamed)}.",
            NAMES,
        )
    return tars
