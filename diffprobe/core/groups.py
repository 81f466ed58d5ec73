"""Groups of samples that are not independent: variants of one drawing, photos of one person, frames of one film."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import TooFewGroups

SINGLE_SAMPLES = "sample"
"""Name, in place of an attribute, of groups that are single samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The group of each sample, numbered from 0 in the order of first occurrence."""

    ids: NDArray[np.int64]
    """The number of the group of each sample, shape (samples,)."""
    n: int
    """Number of groups."""

    @classmethod
    def of(cls, names: Sequence[Hashable], *, what: str = "bootstrap", at_least: int = 2) -> "Groups":
        """Number the groups of samples.

        Args:
            names: the group of each sample; one group per sample where samples are independent.
            what: what needs the groups, for the message of an error.
            at_least: least number of groups that it needs.

        Raises: TooFewGroups, with what can still be said.

        >>> Groups.of(["dog", "cat", "dog"]).ids.tolist()
        [0, 1, 0]
        """
        numbers: dict[Hashable, int] = {}
        ids = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
        require_groups(len(numbers), len(ids), what=what, at_least=at_least)
        return cls(ids=ids, n=len(numbers))

    @classmethod
    def of_values(cls, values: NDArray[np.int64]) -> "Groups":
        """Number the groups of samples from the ids of an attribute's values.

        Args:
            values: id of each sample, int64 (samples,); a sample without a value (-1) is a group of its own.

        >>> Groups.of_values(np.array([7, -1, 7, -1])).ids.tolist()
        [0, 1, 0, 2]
        """
        own = np.where(values < 0, -1 - np.arange(len(values)), values)
        _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))  # by first occurrence, so that the ids do not matter
        return cls(ids=rank[inverse], n=len(first))

    def members(self) -> list[NDArray[np.int64]]:
        """Return the positions of the samples of each group, ascending."""
        order = np.argsort(self.ids, kind="stable").astype(np.int64)
        return np.split(order, np.cumsum(np.bincount(self.ids, minlength=self.n))[:-1])

    def sums(self, parts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over the samples of each group, (groups, k), of one row per sample, (samples, k)."""
        found = np.zeros((self.n, parts.shape[1]))
        np.add.at(found, self.ids, parts)
        return found


def require_groups(n: int, n_samples: int, *, what: str, at_least: int = 2) -> None:
    """Check that there are enough groups. Raises: TooFewGroups, with what can still be said."""
    if n >= at_least:
        return
    raise TooFewGroups(
        f"{what}: {n} {'group' if n == 1 else 'groups'} in {n_samples} samples; at least {at_least} are needed.",
        "the estimate itself stands, without an interval or a p-value: "
        + ("one group does not show how groups differ" if n == 1 else "so few groups do not show how groups differ"),
        fix=f"more groups; or --group-by {SINGLE_SAMPLES}, if the samples are independent",
    )
