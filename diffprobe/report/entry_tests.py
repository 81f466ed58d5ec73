"""What kept predictions show of an entry beside its controls: paired differences, and the place among null values.

Filled by `runs/table_tests.py`; a table that was filled from results alone compares point estimates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

NULL_CONTROLS = ("chance", "shuffled_labels", "random_direction")
"""Controls that are what chance gives: a score is compared with their distribution, not with one number."""
NO_PREDICTIONS = "there are no kept predictions (runs of version 0.2 and later keep them)"
"""Why a table compares point estimates, and why a chosen cell has no interval."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference of an entry from one control, over the same samples: entry minus control."""

    control: str
    """Name of the control."""
    value: float
    """The difference, in the unit of the metric; the mean over seeds minus that of the control."""
    low: float
    """Lower end of its interval over groups."""
    high: float
    """Upper end."""
    n_groups: int
    """Number of groups that were resampled."""
    unit: str
    """What is resampled whole, in words: "values of 'family'", "single samples"."""

    def gain(self, *, higher_is_better: bool) -> float:
        """Return by how much the entry is better than the control; negative where it is worse."""
        return self.value if higher_is_better else -self.value

    def excludes_zero(self, *, higher_is_better: bool) -> bool:
        """Return whether the whole interval is on the better side of 0."""
        return self.low > 0 if higher_is_better else self.high < 0


@dataclass(frozen=True, kw_only=True)
class NullTest:
    """The place of an entry in the distribution of what chance gives."""

    p: float
    """One-sided p: the largest over null distributions and seeds, where there are several."""
    smallest_p: float
    """The smallest p that could have been."""
    quantile: float
    """Share of the null values below the score, 0..1; the smallest over null distributions and seeds."""
    of: str
    """What the null values are of, in words: "labels permuted by group", "random directions and shuffled labels"."""
    p_adjusted: float = 1.0
    """p adjusted for the number of entries of the table that have one (Benjamini and Hochberg)."""
    n_tests: int = 1
    """That number."""


@dataclass(frozen=True, kw_only=True)
class EntryTests:
    """The tests of one entry against its controls."""

    differences: tuple[Difference, ...] = ()
    """The paired difference from each control whose predictions are kept."""
    null: NullTest | None = None
    """The place among null values; None where there is none."""
    null_of: tuple[str, ...] = ()
    """Controls that the null distribution stands for."""
    points: Mapping[str, str] = field(default_factory=dict)
    """Control that is compared by point estimates alone -> the reason."""

    def strongest(self, *, higher_is_better: bool) -> Difference | None:
        """Return the difference from the strongest control; None without differences."""
        return min(self.differences, key=lambda one: one.gain(higher_is_better=higher_is_better), default=None)

    def passes(self, *, higher_is_better: bool, rate: float) -> bool:
        """Return whether the interval of the strongest control excludes 0 and the adjusted p is at most a rate."""
        strongest = self.strongest(higher_is_better=higher_is_better)
        if strongest is not None and not strongest.excludes_zero(higher_is_better=higher_is_better):
            return False
        return self.null is None or self.null.p_adjusted <= rate
