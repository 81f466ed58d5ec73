"""Samples without what a condition needs: found in the index before anything runs, or left out by a setting."""

from collections.abc import Mapping, Sequence

from diffprobe.backbones.prompts import Branch
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardInfo, ShardSet
from diffprobe.shards.reader import read_shard
from diffprobe.shards.scan import CAPTION, LABEL, Gap, Scan

_CLASS = "class_name"
"""Column of templates; a sample has it if it has a label."""


def needed_columns(branches: Sequence[Branch]) -> tuple[str, ...]:
    """Return the columns that the conditions of a plan are made of, each once."""
    return tuple(dict.fromkeys(name for branch in branches for name in branch.columns))


def check_values(
    shard_set: ShardSet, splits: Sequence[str], columns: Sequence[str], *, data: DataConfig, fields: Fields
) -> None:
    """Check that every sample that will be read has a value of each column.

    The index lists the gaps; only if the caption is read from another field than at indexing are the annotations read.

    Args:
        columns: caption, label, class_name, or names of attributes.
        data: limit and caps.
        fields: names of the parts of a sample in this run.

    Raises: UnknownName for a column that the set does not have; ConfigError for samples without a value, with their
        number, the first one and the choices.
    """
    known = (CAPTION, LABEL, _CLASS, *shard_set.attributes)
    for name in columns:
        if name not in known:
            raise unknown("column", name, known)
        counts, first = [], None
        for split in splits:
            n, place = _gap(shard_set, split, LABEL if name == _CLASS else name, data, fields)
            n_read = _read(shard_set, split, data)
            counts += [f"{_at_least(data)}{n:,} of {n_read:,} samples of split '{split}'"] if n else []
            first = first or place
        if counts:
            raise ConfigError(
                f"the condition needs the {name} of every sample; without it are {', '.join(counts)}.",
                f"first: {first}",
                "features.missing=empty gives them the empty prompt, features.missing=leave_out leaves them out",
                fix="features.missing=empty or features.missing=leave_out, or another condition",
            )


def check_table(
    shard_set: ShardSet, splits: Sequence[str], columns: Mapping[str, Mapping[str, str]], *, data: DataConfig
) -> None:
    """Check that the columns of a table have at least as many values as samples will be read.

    Keys are read only from the shards up to the first sample without a value, if there are too few.

    Args:
        columns: column -> key -> value.
        data: limit, and handling of faulty samples.

    Raises: ConfigError with the numbers and the first sample without a value.
    """
    n_read = sum(_read(shard_set, split, data) for split in splits)
    for name, values in columns.items():
        if len(values) >= n_read or data.on_error == "skip":
            continue
        keys = ((raw.key, shard.file) for split in splits for shard in shard_set.shards_of(split)
                for raw in read_shard(shard_set.root / shard.file, name=shard.file, caps=data.caps))  # fmt: skip
        first = next((f"'{key}' in {file}" for key, file in keys if key not in values), "(unknown)")
        raise ConfigError(
            f"the table of features.columns has the {name} of {len(values):,} samples; {n_read:,} are read, of split "
            f"{', '.join(splits)}.",
            f"first without a value: {first}",
            fix="a table of all splits, or features.missing=empty, which gives these samples the empty prompt",
        )


def _gap(shard_set: ShardSet, split: str, name: str, data: DataConfig, fields: Fields) -> tuple[int, str | None]:
    """Return the number of samples without a value and where the first one is.

    Of the shard that `data.limit` cuts, only the first one is known.
    """
    found, first, left = 0, None, data.limit
    for shard in shard_set.shards_of(split):
        n_read = shard.n_samples if left is None else min(left, shard.n_samples)
        left = None if left is None else left - n_read
        gap = _of_shard(shard_set, shard, name, data, fields) if n_read else None
        if gap is None or gap[1] >= n_read:
            continue
        n, position, key = gap
        found += n if n_read == shard.n_samples else 1
        first = first or f"'{key}' in {shard.file}"
    return found, first


def _of_shard(shard_set: ShardSet, shard: ShardInfo, name: str, data: DataConfig, fields: Fields) -> Gap | None:
    if name != CAPTION or fields.caption == shard_set.fields.caption:
        return shard.missing.get(name)
    scan = Scan(fields, renamed=shard_set.renamed, caps=data.caps)
    return scan.shard(shard_set.root / shard.file, name=shard.file).missing_of({name}).get(name)


def _at_least(data: DataConfig) -> str:
    return "" if data.limit is None else "at least "


def _read(shard_set: ShardSet, split: str, data: DataConfig) -> int:
    n = shard_set.n_samples(split)
    return n if data.limit is None else min(n, data.limit)
