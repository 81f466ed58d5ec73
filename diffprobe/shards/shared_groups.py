"""Groups of samples that are in two splits: what is scored there was seen in training or in selection.

They are counted while a set is indexed with its group, so that a run can refuse them before it reads an image.
"""

import itertools
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffprobe.core.errors import SchemaError, SplitLeak
from diffprobe.core.json_file import expect

SINGLE_SAMPLES = "sample"
"""Name, in place of an attribute, of groups that are single samples."""


@dataclass(frozen=True, kw_only=True)
class SharedGroups:
    """Groups that two splits share."""

    first: str
    """A split."""
    second: str
    """Another split, later in the alphabet."""
    n: int
    """Number of groups in both."""
    example: str
    """The first of them."""


def find_shared_groups(values: Mapping[str, set[str]]) -> tuple[SharedGroups, ...]:
    """Return which splits share groups.

    Args:
        values: split -> the groups of its samples.

    >>> find_shared_groups({"train": {"cat", "dog"}, "test": {"dog"}})
    (SharedGroups(first='test', second='train', n=1, example='dog'),)
    """
    pairs = ((one, other, values[one] & values[other]) for one, other in itertools.combinations(sorted(values), 2))
    return tuple(
        SharedGroups(first=one, second=other, n=len(both), example=min(both)) for one, other, both in pairs if both
    )


def parse_shared_groups(record: Any) -> tuple[SharedGroups, ...]:
    """Read what an index records. Raises: SchemaError, TypeError."""
    found = []
    for entry in expect(record, list, where="shared_groups"):
        found.append(SharedGroups(**expect(entry, dict, where="shared_groups")))
        for name, kind in (("first", str), ("second", str), ("n", int), ("example", str)):
            expect(getattr(found[-1], name), kind, where=f"shared_groups: {name}")
        if found[-1].n < 1:
            raise SchemaError(f"shared_groups: n is {found[-1].n}, at least 1")
    return tuple(found)


def require_disjoint_splits(
    shared: Iterable[SharedGroups], splits: Iterable[str], *, group: str, name: str, folder: object
) -> None:
    """Refuse splits that share groups.

    Args:
        shared: the groups that splits of the set share.
        splits: the splits that a run reads.
        group: the attribute that names the groups.
        name, folder: of the set, for the message.

    Raises: SplitLeak, with each pair of splits.
    """
    read = set(splits)
    found = [one for one in shared if {one.first, one.second} <= read]
    if not found:
        return
    raise SplitLeak(
        f"'{name}': values of the group '{group}' are in two splits, so that what is scored was seen before.",
        *(
            f"{one.first} and {one.second}: {one.n:,} value{'s' * (one.n > 1)}, for example '{one.example}'"
            for one in found
        ),
        fix=f"split the set by whole groups; or, if its samples are independent: diffprobe data index "
        f"{shlex.quote(str(folder))} --name {shlex.quote(name)} --licence LICENCE --group {SINGLE_SAMPLES}",
    )
