"""One pass over the shards of a set that collects keys, labels, attribute values and faults. Used by index.py.

Time and memory grow linearly with samples, classes and attribute values.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.annotation import Annotation, Caps, Fields, fault, image_field, parse_annotation
from diffprobe.shards.reader import RawSample, read_shard

CAPTION, LABEL = "caption", "label"
"""Columns besides the attributes of which missing values are counted."""
Gap = tuple[int, int, str]
"""Samples without a value: their number, and position and key of the first one."""


@dataclass(frozen=True)
class ShardScan:
    """What one shard has.

    Attributes:
        n_samples: number of samples, faulty ones included.
        missing: column -> its samples without a value, for the columns that not all valid samples have.
        first: position and key of the first valid sample; None without one.
        n_valid: number of valid samples.
        columns: the columns of which at least one sample has a value.
    """

    n_samples: int
    missing: dict[str, Gap]
    first: tuple[int, str] | None
    n_valid: int
    columns: frozenset[str]

    def missing_of(self, columns: set[str]) -> dict[str, Gap]:
        """Return the gaps of some columns, also of those that no sample of this shard has."""
        if self.first is None:
            return {}
        absent = (self.n_valid, *self.first)
        found = {name: absent if name not in self.columns else self.missing.get(name) for name in sorted(columns)}
        return {name: gap for name, gap in found.items() if gap is not None}


class Scan:
    """Keys, labels with their names, attribute values and faults of a set's shards.

    Args:
        fields: names of the files and keys of a sample.
        renamed: attribute name in the JSON -> its name in the set.
        caps: largest parts of a sample.
        group: attribute whose values are kept by split, in `groups`; None for none.
    """

    def __init__(
        self,
        fields: Fields,
        *,
        renamed: Mapping[str, str] | None = None,
        caps: Caps | None = None,
        group: str | None = None,
    ) -> None:
        self.fields, self.renamed, self.caps = fields, dict(renamed or {}), caps or Caps()
        self.keys: dict[str, str] = {}
        self.names: dict[int, str | None] = {}
        self.unlabelled: set[str] = set()
        self.values: dict[str, set[str]] = {}
        self.faults: list[str] = []
        self.fixes: Counter[str] = Counter()
        self._group, self._split = group, ""
        self.groups: dict[str, set[str]] = {}
        self._annotated = 0
        self._bare: list[str] = []

    def shard(self, path: Path, *, name: str | None = None, split: str = "") -> ShardScan:
        """Read one shard; `name` is its path in the set, `split` its split. Raises: DuplicateKey, ShardError."""
        self._split = split
        orphans: list[str] = []
        found = self.samples(read_shard(path, name=name, orphans=orphans, caps=self.caps))
        self.faults += [f"{name or path.name}: {orphan}." for orphan in orphans]
        return found

    def samples(self, raws: Iterable[RawSample]) -> ShardScan:
        """Read the samples of one shard. Raises: DuplicateKey."""
        gaps = _Gaps()
        count = 0
        for raw in raws:
            count += 1
            if raw.key in self.keys:
                raise DuplicateKey(f"{raw.shard}: key '{raw.key}' also occurs in {self.keys[raw.key]}.")
            self.keys[raw.key] = raw.shard
            try:
                annotation = self._sample(raw)
            except SampleError as error:
                self.faults.append(error.what)
                self.fixes.update([error.fix] if error.fix else [])
            else:
                gaps.add(raw, annotation)
        return gaps.of_shard(count)

    def _sample(self, raw: RawSample) -> Annotation:
        image_field(raw, self.fields)
        annotation = parse_annotation(raw, self.fields, renamed=self.renamed, caps=self.caps)
        if raw.files.keys() & {self.fields.json, "cls", "txt"}:
            self._annotated += 1
        else:
            self._bare.append(fault(raw, f"no annotation ({self.fields.json}), while other samples have one").what)
        for key, value in annotation.attributes.items():
            self.values.setdefault(key, set()).add(value)
            if key == self._group:
                self.groups.setdefault(self._split, set()).add(value)
        self._class(raw, annotation)
        return annotation

    def all_faults(self) -> list[str]:
        """List all faults. Either all samples have an annotation or none has; a missing one is a fault otherwise."""
        return [*self.faults, *(self._bare if self._annotated else [])]

    def check_columns(self) -> None:
        """Raise ShardError, with the renames to make, for attribute names that diffprobe cannot keep apart."""
        faults = column_faults(self.values)
        if faults:
            lines = describe_faults(faults)
            raise ShardError(
                f"{len(faults)} attribute names cannot be kept apart from other names.",
                *lines[:10],
                fix="rename them: diffprobe data index ... "
                + " ".join(f"--rename {shlex.quote(f'{name}=NEW_NAME')}" for name in list(faults)[:5]),
            )
        unused = sorted(set(self.renamed) - {old for old, new in self.renamed.items() if new in self.values})
        if unused:
            raise ShardError(f"--rename {unused[0]}={self.renamed[unused[0]]}: no sample has the attribute.")

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

    def classes(self, *, number_duplicates: bool = False) -> tuple[str, ...]:
        """Return class names by label; the name of an unnamed or unused label is its number.

        Args:
            number_duplicates: append the label to a name that several labels have, "crane (134)" and "crane (517)".

        Raises: ShardError for a name that several labels have, or a class without label where others have one.
        """
        if not self.names:
            return tuple(sorted(self.unlabelled))
        named = [self.names.get(label) or str(label) for label in range(max(self.names) + 1)]
        twice = _twice(named)
        if twice and number_duplicates:
            named = [numbered(name, label) if name in twice else name for label, name in enumerate(named)]
            twice = _twice(named)
        if twice:
            name = min(twice)
            raise ShardError(
                f"class name '{name}' is used for several labels.",
                f"labels: {', '.join(str(label) for label, other in enumerate(named) if other == name)}",
                *([f"{len(twice)} names are used more than once"] if len(twice) > 1 else []),
                fix=None
                if number_duplicates
                else f"--number-duplicates, which names them '{numbered(name, named.index(name))}' and so on",
            )
        unnumbered = self.unlabelled - set(named)
        if unnumbered:
            raise ShardError(f"class '{min(unnumbered)}' has no label in any sample, while other classes have one.")
        return tuple(named)


class _Gaps:
    """Counts the samples of one shard without a value, column by column."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._complete: set[str] = set()
        self._first_gap: dict[str, tuple[int, str]] = {}
        self._first: tuple[int, str] | None = None
        self._n_valid = 0

    def add(self, raw: RawSample, annotation: Annotation) -> None:
        here = {*annotation.attributes, *([CAPTION] if annotation.caption else [])}
        if annotation.label is not None or annotation.class_name is not None:
            here.add(LABEL)
        place = (raw.position, raw.key)
        if self._first is None:
            self._first, self._complete = place, set(here)
        for name in self._complete - here:
            self._first_gap[name] = place
        self._complete &= here
        for name in here:
            if not self._held[name] and self._n_valid:
                self._first_gap[name] = self._first
        self._held.update(here)
        self._n_valid += 1

    def of_shard(self, count: int) -> ShardScan:
        missing = {name: (self._n_valid - self._held[name], *place) for name, place in self._first_gap.items()}
        return ShardScan(count, missing, self._first, self._n_valid, frozenset(self._held))


def numbered(name: str, label: int) -> str:
    """Return the name of a class whose own name stands for several labels.

    >>> numbered("crane", 134)
    'crane (134)'
    """
    return f"{name} ({label})"


def _twice(names: list[str]) -> set[str]:
    return {name for name, n in Counter(names).items() if n > 1}
