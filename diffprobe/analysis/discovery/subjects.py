"""How components depend on subjects: share of variance, permutation test, and which subjects are high or low.

Where all subjects share their noise (seed 3 of every prompt starts from the same noise), subjects are permuted within
a seed and intervals resample seeds; else single samples are permuted and resampled.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from diffprobe.analysis.statistics import GroupPermutation, Interval, Null, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, TooFewGroups

LEAST_PER_SUBJECT = 3
"""Samples that each subject needs."""
_BLOCK = 1_000_000
"""Largest number of permuted labels that are held at once."""


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

    def permutation(self) -> GroupPermutation:
        """Return what permutes the subjects: within blocks where there are blocks. Raises: EmptyClass, TooFewGroups."""
        found = GroupPermutation(self.subjects, self.blocks or (0,) * len(self.subjects))
        found.require_several()
        return found


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
    counts = np.bincount(design.subjects, minlength=len(design.names)).astype(np.float64)
    columns = np.ascontiguousarray(np.asarray(scores, dtype=np.float64).T)
    totals = (columns**2).sum(1)
    sums = _sums(columns, design.subjects[None], len(counts))[:, 0]
    permutation = design.permutation()
    shares, largest = [], []
    for labels in _drawn(permutation, n_permutations, seed):
        drawn = _sums(columns, labels, len(counts))
        shares.append((drawn**2 / counts).sum(2) / totals[:, None])
        largest.append(_standardised(drawn, counts).max(2))
    by_chance, most = np.concatenate(shares, axis=1), np.concatenate(largest, axis=1)
    found = []
    for i, own in enumerate(_standardised(sums, counts)):
        null = Null(
            observed=float((sums[i] ** 2 / counts).sum() / totals[i]), values=by_chance[i],
            n_permutations=n_permutations, n_distinct=permutation.n_distinct, n_between=permutation.n_between,
            n_within=permutation.n_within,
        )  # fmt: skip
        p = (1 + (most[i][None] >= own[:, None] - 1e-12).sum(1)) / (1 + n_permutations)
        found.append(SubjectDependence(share=null.observed, null=null, means=sums[i] / counts, p=p))
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


def _drawn(permutation: GroupPermutation, n: int, seed: int) -> Iterator[Int64[np.ndarray, "some samples"]]:
    """Yield permuted subjects in blocks of bounded size."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(permutation.labels))
    for start in range(0, n, block):
        yield permutation.draw(min(block, n - start), generator)


def _sums(
    columns: Float64[np.ndarray, "components samples"], labels: Int64[np.ndarray, "rows samples"], n: int
) -> Float64[np.ndarray, "components rows subjects"]:
    """Return the sum of each component per subject, for each row of labels."""
    places = (labels + n * np.arange(len(labels))[:, None]).ravel()
    flat = [np.bincount(places, weights=np.tile(one, len(labels)), minlength=n * len(labels)) for one in columns]
    return np.stack(flat).reshape(len(columns), len(labels), n)


def _standardised(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the absolute mean of each subject in standard errors, for scores of variance 1."""
    found: np.ndarray = np.abs(sums) / np.sqrt(counts)
    return found
