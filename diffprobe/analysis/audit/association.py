"""The association of each subject with an axis: cosine and projection, two-way intervals, sign-flip p, and q.

Latents of subjects are centred by their mean over the audited subjects of the same template and seed: 0 is the average
subject of the audit, not parity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from diffprobe.analysis.audit.direction import AxisDirection
from diffprobe.analysis.statistics import Null, TwoWayResamples, benjamini_hochberg, sign_flip_nulls
from diffprobe.core.errors import ConfigError, EmptyClass

Floats = Float64[np.ndarray, " subjects"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How intervals and tests are drawn."""

    level: float = 0.95
    """Nominal coverage of intervals."""
    n_resamples: int = 1000
    """Resamples of templates and seeds."""
    n_permutations: int = 9999
    """Sign patterns of a test, where not all are enumerated."""
    seed: int = 0
    """Seed of both."""

    def resamples(self, n_templates: int, n_seeds: int) -> TwoWayResamples | None:
        """Return the resamples; None where one template or one seed allows no interval. Raises: ConfigError."""
        if min(n_templates, n_seeds) < 2:
            return None
        return TwoWayResamples(n_templates, n_seeds, n_resamples=self.n_resamples, seed=self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimates:
    """One number per subject, with intervals and tests where templates and seeds allow them."""

    value: Floats
    """The estimates."""
    low: Floats | None
    """Lower ends of the intervals; None without intervals."""
    high: Floats | None
    """Upper ends."""
    p: Floats | None
    """Two-sided p of sign flips within templates; None with a single template."""
    smallest_p: float | None
    """The smallest p that the number of templates allows."""
    q: Floats | None
    """The p adjusted for the number of subjects (Benjamini and Hochberg)."""

    def discoveries(self, rate: float) -> np.ndarray:
        """Return which subjects are discoveries: q at most `rate`, and an interval without 0.

        The test is exact for the noise seeds that were drawn; the interval also resamples these. Both have to agree.
        """
        if self.q is None or self.low is None or self.high is None:
            return np.zeros(len(self.value), dtype=bool)
        return (self.q <= rate) & ((self.low > 0) | (self.high < 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Associations:
    """Association of each subject with one axis."""

    cosine: Estimates
    """Cosine of the centred latent with the direction, -1..1."""
    projection: Estimates
    """The same as a length along the direction, in standard deviations of single prompts over seeds; its p and q are
    those of the cosine."""


def centred(
    subjects: Float32[np.ndarray, "subjects templates seeds d"],
) -> Float32[np.ndarray, "subjects templates seeds d"]:
    """Return the latents minus their mean over subjects, in each template and seed."""
    return subjects - subjects.mean(0, keepdims=True)


def associate(
    subjects: Float32[np.ndarray, "subjects templates seeds d"],
    differences: Float64[np.ndarray, "templates seeds d"],
    direction: AxisDirection,
    sampling: Sampling,
) -> Associations:
    """Measure the association of each subject with an axis.

    In each resample of templates and seeds, both the subject's latent and the direction are computed anew; the lengths
    by which their product is divided are those of the whole sample. The test flips the labels of both ends within each
    template: its differences are products of the subject's latent and the direction of the same template, so that the
    errors of both count. It takes the drawn seeds as given.

    Args:
        subjects: centred latents; see `centred`.
        differences: paired differences of the contexts of the axis.
        direction: `direction_of(differences)`.

    Raises: ConfigError for one subject, whose centred latent is 0; EmptyClass if a centred latent is 0.
    """
    if len(subjects) < 2:
        raise ConfigError("an association is relative to the mean of the subjects: at least 2 subjects are needed.")
    n_templates, n_seeds = differences.shape[:2]
    means = subjects.mean((1, 2), dtype=np.float64)
    lengths = np.linalg.norm(means, axis=1)
    if not (lengths > 0).all():
        raise EmptyClass(f"the centred latent of subject {int(np.argmin(lengths))} is 0: it equals the mean subject.")
    along = means @ direction.unit
    spread = within_prompt_sd(subjects, direction.unit)
    resamples = sampling.resamples(n_templates, n_seeds)
    low = high = None
    if resamples is not None:
        ends = _intervals(subjects, differences, direction, along, resamples, sampling.level)
        low, high = ends[:, 0], ends[:, 1]
    p, smallest, q = tests_of(_matched_products(subjects, differences, direction.length), sampling)

    def scaled(by: Floats | float) -> Estimates:
        return Estimates(
            value=along / by, low=None if low is None else low / by, high=None if high is None else high / by, p=p,
            smallest_p=smallest, q=q,
        )  # fmt: skip

    return Associations(cosine=scaled(lengths), projection=scaled(spread))


def mean_estimates(values: Float64[np.ndarray, "subjects templates seeds"], sampling: Sampling) -> Estimates:
    """Return the mean of each subject's values over templates and seeds, with interval, p and q."""
    resamples = sampling.resamples(*values.shape[1:])
    low = high = None
    if resamples is not None:
        drawn = resamples.means(values)
        found = [
            resamples.interval(float(one.mean()), drawn[:, i], level=sampling.level) for i, one in enumerate(values)
        ]
        low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
    p, smallest, q = tests_of(values.mean(2), sampling)
    return Estimates(value=values.mean((1, 2)), low=low, high=high, p=p, smallest_p=smallest, q=q)


def tests_of(
    values: Float64[np.ndarray, "subjects templates"], sampling: Sampling
) -> tuple[Floats | None, float | None, Floats | None]:
    """Return p, smallest p and q of sign flips within templates; None each with a single template."""
    if values.shape[1] < 2:
        return None, None, None
    found = sign_flip_nulls(values, n_permutations=sampling.n_permutations, seed=sampling.seed)
    p = np.array([null.p for null in found])
    return p, found[0].smallest_p, np.array(benjamini_hochberg(p.tolist()).adjusted)


def within_prompt_sd(
    subjects: Float32[np.ndarray, "subjects templates seeds d"], unit: Float64[np.ndarray, " d"]
) -> float:
    """Return the standard deviation over seeds of the coordinate along a direction, pooled over prompts.

    With one seed, that over templates, pooled over subjects; 1 with one template, too, or if nothing varies.
    """
    along = np.asarray(subjects @ unit.astype(subjects.dtype), dtype=np.float64)
    axis = 2 if along.shape[2] > 1 else 1
    if along.shape[axis] < 2:
        return 1.0
    found = float(np.sqrt(along.var(axis, ddof=1).mean()))
    return found if found > 0 else 1.0


def random_percentiles(
    means: Float64[np.ndarray, "subjects d"], unit: Float64[np.ndarray, " d"], *, n_random: int = 1000, seed: int = 0
) -> Floats:
    """Return the share of random directions with which each subject has a smaller absolute cosine, 0..1.

    A subject has some cosine with any direction, and with enough templates it differs from 0 beyond doubt. Random
    directions are random combinations of the centred latents of the other subjects.

    Args:
        means: centred latents, averaged over templates and seeds.
        unit: direction of length 1.
    """
    mixes = np.random.default_rng(seed).normal(size=(n_random, len(means)))
    all_of_them, squares = mixes @ means, np.linalg.norm(means, axis=1)
    found = np.empty(len(means))
    for i, one in enumerate(means):
        directions = all_of_them - mixes[:, i : i + 1] * one
        scale = np.maximum(np.linalg.norm(directions, axis=1), 1e-300) * max(squares[i], 1e-300)
        chance = np.abs(directions @ one) / scale
        found[i] = (chance < abs(float(one @ unit)) / max(squares[i], 1e-300)).mean()
    return found


def group_effect(scores: Floats, members: np.ndarray, sampling: Sampling) -> tuple[float, Null]:
    """Return the effect size of the associations of a group of subjects against the others, and its null distribution.

    The effect size is the difference of both means over the standard deviation of all scores (Caliskan et al. 2017,
    Semantics derived automatically from language corpora, Science). The null exchanges subjects between the groups;
    it is two-sided.

    Args:
        scores: association of each subject.
        members: which subjects are in the group, at least 1 and not all.

    Raises: EmptyClass for a group that is empty or has all subjects, or scores that do not vary.
    """
    n, inside = len(scores), int(members.sum())
    deviation = float(scores.std(ddof=1)) if n > 1 else 0.0
    if not 0 < inside < n or not deviation > 0:
        raise EmptyClass(f"effect size of a group of {inside} of {n} subjects: both parts need a subject, and scores "
                         "have to vary.")  # fmt: skip
    value = float((scores[members].mean() - scores[~members].mean()) / deviation)
    generator = np.random.default_rng(sampling.seed)
    orders = generator.permuted(np.tile(members, (sampling.n_permutations, 1)), axis=1)
    sums = orders @ scores
    drawn = (sums / inside - (scores.sum() - sums) / (n - inside)) / deviation
    from math import comb

    null = Null(observed=abs(value), values=np.abs(drawn), n_permutations=sampling.n_permutations,
                n_distinct=float(comb(n, inside)))  # fmt: skip
    return value, null


def _intervals(
    subjects: Float32[np.ndarray, "subjects templates seeds d"], differences: Float64[np.ndarray, "templates seeds d"],
    direction: AxisDirection, along: Floats, resamples: TwoWayResamples, level: float,
) -> Float64[np.ndarray, "subjects 2"]:  # fmt: skip
    """Return both ends of the interval of each projection."""
    drawn = resamples.means(np.moveaxis(differences, -1, 0)) / direction.length
    found = []
    for one, value in zip(subjects, along, strict=True):
        values = (resamples.means(np.moveaxis(one, -1, 0)) * drawn).sum(1)
        interval = resamples.interval(float(value), values, level=level)
        found.append((interval.low, interval.high))
    return np.array(found)


def _matched_products(
    subjects: Float32[np.ndarray, "subjects templates seeds d"], differences: Float64[np.ndarray, "templates seeds d"],
    length: float,
) -> Float64[np.ndarray, "subjects templates"]:  # fmt: skip
    per_template = differences.mean(1) / length
    return np.einsum("ntd,td->nt", subjects.mean(2, dtype=np.float64), per_template)


def labels_of(groups: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Return which subjects are in each named group that does not have all of them.

    >>> {name: members.tolist() for name, members in labels_of(["a", None, "a"]).items()}
    {'a': [True, False, True]}
    """
    names = [name for name in dict.fromkeys(groups) if name is not None]
    found = {name: np.array([group == name for group in groups]) for name in names}
    return {name: members for name, members in found.items() if not members.all()}
