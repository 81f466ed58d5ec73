"""Cut a validation split out of the training split by hash, for sets without one (`data.val_fraction`).

A sample's side depends on its group, or its key, alone: not on shards, order, batches, workers or processes, nor on
other samples. Stored features are divided by the rows of the store (`Holdout.rows`), images by one reading of the
annotations (`open_view`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SampleError, ShardError, unknown
from diffprobe.shards.annotation import parse_annotation
from diffprobe.shards.hash_split import hash_fraction
from diffprobe.shards.index import ShardInfo, ShardSet

KEY = "key"
"""Value of `data.val_group` for the key of each sample."""


@dataclass(frozen=True, kw_only=True)
class ShardPart(ShardInfo):
    """The samples of one shard that belong to a split; `n_samples` counts them.

    Attributes:
        members: one byte per sample of the shard, in order: 1 if it belongs to the split.
    """

    members: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ShardView(ShardSet):
    """A shard set with a validation split that was cut out of its training split.

    Attributes:
        whole: the set as its index describes it.
    """

    whole: ShardSet = field(repr=False)

    @cached_property
    def digest(self) -> str:  # type: ignore[override]  # a cached property replaces one
        """The digest of the whole set: how it is divided is part of the run's configuration."""
        return self.whole.digest


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The rule that divides the samples of the training split.

    Attributes:
        fraction: share of the groups (or keys) for validation.
        group: attribute whose values stay on one side; None for the key.
        train, val: names of the two splits.
    """

    fraction: float
    group: str | None
    train: str
    val: str

    @classmethod
    def of(cls, data: DataConfig, shard_set: ShardSet) -> "Holdout | None":
        """Return the rule of `data`, or None without `data.val_fraction`.

        Raises: ConfigError for a set that has the validation split, for a group that is not an attribute, and for
            samples without a value of it; UnknownName for an unknown training split.
        """
        if data.val_fraction is None:
            return None
        asked = f"data.val_fraction={data.val_fraction:g}"
        if data.val_split in shard_set.splits():
            raise ConfigError(
                f"{asked} has no effect: '{shard_set.name}' has a split '{data.val_split}'.",
                f"its splits: {', '.join(shard_set.splits())}",
                fix="remove data.val_fraction; or data.val_split=NAME, a name that the set does not have",
            )
        shards = shard_set.shards_of(data.train_split)
        group = shard_set.group if data.val_group is None else data.val_group
        group = None if group == KEY else group
        if group is not None and group not in shard_set.attributes:
            error = unknown(
                f"data.val_group (attribute of '{shard_set.name}')", group, shard_set.attributes, ConfigError
            )
            error.fix = f"data.val_group=NAME for an attribute of the set, or data.val_group={KEY}"
            raise error
        gaps = [shard.missing[group] for shard in shards if group in shard.missing] if group else []
        if gaps:
            raise ConfigError(
                f"{sum(n for n, _, _ in gaps):,} samples of split '{data.train_split}' have no value of the group "
                f"'{group}'.",
                f"first: '{gaps[0][2]}'",
                fix=f"give each its value and index the set again, or data.val_group={KEY}",
            )
        return cls(fraction=data.val_fraction, group=group, train=data.train_split, val=data.val_split)

    def is_val(self, value: str) -> bool:
        """Return whether the samples with a group (or key) are held out. A larger fraction holds out these and more."""
        return hash_fraction("val_fraction", value) < self.fraction

    def rows(
        self, split: str, keys: Sequence[str], ids: Mapping[str, Sequence[int]], values: Mapping[str, Sequence[str]]
    ) -> list[int]:
        """Return which of some samples of the stored training split belong to `split`, ascending.

        Args:
            split: the training or the validation split.
            keys: key of each sample.
            ids: attribute -> id of each sample.
            values: attribute -> its values; an id is an index into them.
        """
        wanted = split == self.val
        if self.group is None:
            return [row for row, key in enumerate(keys) if self.is_val(key) == wanted]
        held = [self.is_val(value) for value in values[self.group]]
        return [row for row, i in enumerate(ids[self.group]) if (i >= 0 and held[i]) == wanted]

    def require(self, n_train: int, n_val: int) -> None:
        """Check that both splits have samples. Raises: ConfigError."""
        if n_train and n_val:
            return
        empty = self.val if n_train else self.train
        by = f"values of '{self.group}'" if self.group else "keys"
        raise ConfigError(
            f"data.val_fraction={self.fraction:g} leaves split '{empty}' without a sample: all {n_train + n_val:,} "
            f"samples of '{self.train}' fall into '{self.train if n_train else self.val}', by the hash of their {by}.",
            fix="a larger data.val_fraction" if n_train else "a smaller data.val_fraction",
        )


def open_view(data: DataConfig, shard_set: ShardSet | None = None) -> ShardSet:
    """Open the shard set of `data` with the splits that a run reads.

    With `data.val_fraction`, the annotations of the training split are read once per process; `data.limit` counts its
    samples before they are divided, so that images and stored features agree.

    Args:
        shard_set: the set, if it is open already.

    Raises: ShardError for a set that cannot be opened or a shard that has changed; see `Holdout.of` and
        `Holdout.require`.
    """
    whole = shard_set or ShardSet.load(data.path, storage_patience=data.storage_patience)
    rule = Holdout.of(data, whole)
    if rule is None:
        return whole
    asked = (str(whole.root.resolve()), whole.digest, rule, data.limit, repr((data.fields, whole.patience)))
    if asked not in _VIEWS:
        _VIEWS[asked] = _cut(whole, rule, data)
    return _VIEWS[asked]


_VIEWS: dict[tuple[str, str, Holdout, int | None, str], ShardView] = {}


def _cut(whole: ShardSet, rule: Holdout, data: DataConfig) -> ShardView:
    fields, left = whole.fields_for(data.fields), data.limit
    shards: list[ShardInfo] = []
    for shard in whole.shards:
        if shard.split != rule.train:
            shards.append(shard)
            continue
        if data.verify or shard.file in whole.newer:
            whole.check(shard.file)
        sides = bytearray(shard.n_samples)  # 0: not read, 1: train, 2: val
        n_read = shard.n_samples if left is None else min(left, shard.n_samples)
        left = None if left is None else left - n_read
        count = 0
        for raw in whole.read(shard.file, caps=data.caps) if n_read else ():
            if count == n_read:
                break
            value = raw.key
            if rule.group is not None:
                try:
                    found = parse_annotation(raw, fields, renamed=whole.renamed, caps=data.caps).attributes
                except SampleError:  # the stream raises it, or leaves the sample out
                    found = {}
                value = found.get(rule.group, raw.key)
            sides[count] = 2 if rule.is_val(value) else 1
            count += 1
        if count < n_read:
            raise ShardError(
                f"{shard.file}: the shard has {count} samples, the index {shard.n_samples}.",
                fix=f"diffprobe data verify {whole.root}",
            )
        for split, side in ((rule.train, 1), (rule.val, 2)):
            shards.append(_part(shard, split, bytes(byte == side for byte in sides)))
    counts = {name: sum(s.n_samples for s in shards if s.split == name) for name in (rule.train, rule.val)}
    rule.require(counts[rule.train], counts[rule.val])
    return ShardView(
        name=whole.name, root=whole.root, shards=tuple(shards), classes=whole.classes, attributes=whole.attributes,
        licence=whole.licence, faults=whole.faults, fields=whole.fields, renamed=whole.renamed, newer=whole.newer,
        grouped_by=whole.grouped_by, shared_groups=whole.shared_groups, patience=whole.patience, whole=whole,
    )  # fmt: skip


def _part(shard: ShardInfo, split: str, members: bytes) -> ShardPart:
    return ShardPart(
        file=shard.file, split=split, n_samples=members.count(1), sha256=shard.sha256, n_bytes=shard.n_bytes,
        missing=shard.missing, members=members,
    )  # fmt: skip
