"""How components depend on subjects: share of variance, permutation test, and which subjects are high or low.

Where all subjects share their noise (seed 3 of every prompt starts from the same noise), subjects are permuted within
a seed and intervals resample seeds; else single samples are permuted and resampled.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from diffprobe.analysis.statistics import Interval, LabelPermutations, Null, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, TooFewGroups

LEAST_PER_SUBJECT = 3
"""Samples that each subject needs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The subject of each sample, and the block of samples that share their noise.

    Raises: ConfigError for other numbers of samples; TooFewGroups for one subject, or one with fewer than
        `LEAST_PER_SUBJECT` samples.
    """

    names: tuple[str, ...]
    """Names of the subjects."""
    subjects: Int64[np.ndarray, " samples"]
    """Number of each sample's subject."""
    blocks: tuple[Hashable, ...] | None = None
    """Seed of each sample, where all subjects share their seeds; None for independent samples."""

    def __post_init__(self) -> None:
        if self.blocks is not None and len(self.blocks) != len(self.subjects):
            raise ConfigError(f"{len(self.subjects)} subjects of samples for {len(self.blocks)} blocks.")
        if len(self.names) < 2:
            raise TooFewGroups(
                f"discovery: {len(self.names)} subject; at least 2 are needed to see what differs between subjects.",
                fix="a prompt per subject, or subject=ATTRIBUTE of the store",
            )
        counts = np.bincount(self.subjects, minlength=len(self.names))
        if (few := np.flatnonzero(counts < LEAST_PER_SUBJECT)).size:
            raise TooFewGroups(
                f"discovery: {len(few)} of {len(self.names)} subjects have fewer than {LEAST_PER_SUBJECT} samples, for "
                f"example '{self.names[int(few[0])]}' with {int(counts[few[0]])}.",
                fix="more seeds or images per subject",
            )

    def permutations(self, n: int, seed: int) -> LabelPermutations:
        """Return permutations of the subjects, within blocks where there are blocks."""
        return LabelPermutations(self.subjects, self.blocks or (0,) * len(self.subjects), n=n, seed=seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectDependence:
    """How one component depends on subjects."""

    share: float
    """Share of the component's variance between subjects, 0..1."""
    null: Null
    """That share for permuted subjects."""
    means: Float64[np.ndarray, " subjects"]
    """Mean score of each subject."""
    p: Float64[np.ndarray, " subjects"]
    """Of the difference of each subject from the mean, adjusted for the number of subjects: against the largest
    difference of any subject among permuted ones."""


def subject_dependence(
    scores: Float64[np.ndarray, "samples components"], design: Design, *, n_permutations: int = 999, seed: int = 0
) -> list[SubjectDependence]:
    """Measure how each component depends on subjects.

    The hypothesis of the test: subjects have nothing to do with the component. Components have to be found without
    the subjects, as `find_components` does.

    Args:
        scores: mean 0 and standard deviation 1 per component.
        design: subjects and blocks.
        n_permutations, seed: of the test.

    Raises: EmptyClass if all permutations are alike.
    """
    permutations = design.permutations(n_permutations, seed)
    counts = np.bincount(design.subjects, minlength=len(design.names)).astype(np.float64)
    found = []
    for column in np.asarray(scores, dtype=np.float64).T:
        total = float((column**2).sum())

        def share(labels: np.ndarray, column: np.ndarray = column, total: float = total) -> np.ndarray:
            return (_sums(column, labels, len(counts)) ** 2 / counts).sum(1) / total

        def largest(labels: np.ndarray, column: np.ndarray = column) -> np.ndarray:
            return _standardised(_sums(column, labels, len(counts)), counts).max(1)

        null, most = permutations.null(share), permutations.null(largest)
        sums = _sums(column, design.subjects[None], len(counts))
        own = _standardised(sums, counts)[0]
        p = (1 + (most.values[None] >= own[:, None] - 1e-12).sum(1)) / (1 + len(most.values))
        found.append(SubjectDependence(share=null.observed, null=null, means=sums[0] / counts, p=p))
    return found


def subject_intervals(
    values: Float64[np.ndarray, " samples"],
    design: Design,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Return the mean of a value per subject (membership of a group: its rate), with intervals over seeds or samples.

    Raises: TooFewGroups for a subject with a single seed.
    """
    found = []
    for number in range(len(design.names)):
        rows = np.flatnonzero(design.subjects == number)
        clusters: Sequence[Hashable] = rows.tolist() if design.blocks is None else [design.blocks[i] for i in rows]
        found.append(bootstrap_interval(
            mean_of(values[rows]), clusters, n_resamples=n_resamples, level=level, seed=seed, method="expanded",
        ))  # fmt: skip
    return found


def _sums(column: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """Return the sum of a component per subject for each row of labels, shape (rows, subjects)."""
    places = labels + n * np.arange(len(labels))[:, None]
    flat = np.bincount(places.ravel(), weights=np.tile(column, len(labels)), minlength=n * len(labels))
    return flat.reshape(len(labels), n)


def _standardised(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the absolute mean of each subject in standard errors, for scores of variance 1."""
    found: np.ndarray = np.abs(sums) / np.sqrt(counts)
    return found
