"""A logistic regression with slope and intercept for each latent and class, fitted in passes over sparse codes.

The probe of a latent and a class is p(class) = sigmoid(w a + b), with the activation a as its only input: how much a
single latent says about a class, in bits. After `probe1d` of saev (Stevens et al. 2025, Sparse autoencoders for
scientifically rigorous interpretation of vision models), which fits all pairs at once by Newton's method.

A pass adds up loss, gradient and Hessian over the images on which latents are active; the inactive ones, whose logit is
the intercept, are counts. Memory is that of a few numbers for each pair of a latent and a class, whatever the number of
images, and the sums of processes add up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.best_value import LabelledCodes
from diffprobe.analysis.latents.permutation_tests import (
    PermutationSettings,
    SparseWeights,
    adjusted,
    permuted_p,
)
from diffprobe.analysis.latents.rank_scores import weighted_counts
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 2_000_000
"""Largest number of logits that are held at once."""
_MOST_PASSES = 60
_TOLERANCE = 1e-9
"""Largest decrease of the loss, per image, that a converged pair may still expect of a Newton step."""


class CodeBatch(NamedTuple):
    """Positive activations of a batch of images."""

    row: Ints
    """Image of each activation, from 0 in the batch."""
    latent: Ints
    """Latent of each activation."""
    value: Floats
    """Each activation, above 0."""
    labels: Ints
    """Class of each image of the batch."""


class ClassSums:
    """What is summed once: images by class, and of each latent the active images by class and the squared activation.

    Args:
        n_latents: number of latents.
        n_classes: number of classes.
    """

    def __init__(self, n_latents: int, n_classes: int) -> None:
        if n_latents < 1 or n_classes < 2:
            raise ConfigError(f"logistic probes: {n_latents} latents and {n_classes} classes; needed: 1 and 2.")
        self.n_classes = np.zeros(n_classes)
        self.n_active = np.zeros((n_latents, n_classes))
        self.square = np.zeros(n_latents)

    def update(self, batch: CodeBatch) -> None:
        """Add a batch."""
        np.add.at(self.n_classes, batch.labels, 1)
        np.add.at(self.n_active, (batch.latent, batch.labels[batch.row]), 1)
        np.add.at(self.square, batch.latent, batch.value**2)

    def merge(self, other: "ClassSums") -> None:
        """Add the sums of another process."""
        self.n_classes += other.n_classes
        self.n_active += other.n_active
        self.square += other.square

    @property
    def scale(self) -> Floats:
        """Root mean square of the activation of each latent where it is active, 1 where it never is, (latents,)."""
        active = self.n_active.sum(1)
        return np.where(active > 0, np.sqrt(self.square / np.maximum(active, 1)), 1.0)


class NewtonSums:
    """Loss, gradient and Hessian of all pairs at given parameters, over the images on which a latent is active.

    Args:
        slope: per unit of the latent's scale, (latents, columns).
        intercept: (latents, columns).
        scale: of each latent's activation, (latents,).
        classes: class of each column of each latent, (latents, columns).
    """

    def __init__(self, slope: Floats, intercept: Floats, scale: Floats, classes: Ints) -> None:
        self.slope, self.intercept, self.scale, self.classes = slope, intercept, scale, classes
        self.parts = np.zeros((6, *slope.shape))  # loss, gradient (w, b), Hessian (ww, wb, bb)

    def update(self, batch: CodeBatch) -> None:
        """Add a batch."""
        step = max(1, _BLOCK // self.slope.shape[1])
        order = np.argsort(batch.latent, kind="stable")
        for start in range(0, len(order), step):
            part = order[start : start + step]
            latent = batch.latent[part]
            x = (batch.value[part] / self.scale[latent])[:, None]
            logit = self.slope[latent] * x + self.intercept[latent]
            y = batch.labels[batch.row[part]][:, None] == self.classes[latent]
            p = _sigmoid(logit)
            error, curve = p - y, p * (1 - p)
            terms = (_softplus(logit) - np.where(y, logit, 0.0), error * x, error, curve * x * x, curve * x, curve)
            edges = np.flatnonzero(np.r_[True, np.diff(latent) != 0])
            for sums, term in zip(self.parts, terms, strict=True):
                sums[latent[edges]] += np.add.reduceat(term, edges, axis=0)

    def merge(self, other: "NewtonSums") -> None:
        """Add the sums of another process, at the same parameters."""
        self.parts += other.parts


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticProbes:
    """Fitted probes of pairs of a latent and a class: one column per class, or the columns that were asked for."""

    slope: Floats
    """Change of the logit per unit of activation, (latents, columns)."""
    intercept: Floats
    """Logit of an image on which the latent is not active, (latents, columns)."""
    prior: Floats
    """Logit of the class without any latent, (latents, columns)."""
    bits: Floats
    """Loss reduction on the fitted images against `prior`, in bits per image, (latents, columns); at least about 0."""
    n_passes: int
    """Passes over the codes."""


def fit_probes(
    passes: Callable[[], Iterable[CodeBatch]],
    n_latents: int,
    n_classes: int,
    *,
    classes: Ints | None = None,
    ridge: float = 0.01,
    reduce: Callable[[ClassSums | NewtonSums], None] | None = None,
) -> LogisticProbes:
    """Fit the probes of all latents and classes.

    Newton's method with Levenberg's damping: a step that raises the loss of a pair is taken back, and shortened.

    Args:
        passes: starts a pass over the batches; every pass is over the same images.
        n_latents: number of latents.
        n_classes: number of classes.
        classes: classes for which each latent has a probe, (latents, columns); None for all classes.
        ridge: penalty ridge / 2 times the squared slope, added to the summed loss; the slope is per root mean square of
            the latent's activation where it is active. It keeps slopes finite where a latent separates a class.
        reduce: adds the sums of other processes to those of this one, in place; None for one process.

    Raises: ConfigError for no image, or a ridge that is not positive.
    """
    if ridge <= 0:
        raise ConfigError(f"logistic probes: ridge={ridge}; allowed: above 0.")
    counts = ClassSums(n_latents, n_classes)
    for batch in passes():
        counts.update(batch)
    if reduce is not None:
        reduce(counts)
    n = counts.n_classes.sum()
    if n < 1:
        raise ConfigError("logistic probes: no image has a class.")
    columns = np.tile(np.arange(n_classes), (n_latents, 1)) if classes is None else classes
    n_class = counts.n_classes[columns]
    share = np.clip(n_class / n, 0.5 / n, 1 - 0.5 / n)  # half an image for a class of none or all images
    prior = np.log(share) - np.log1p(-share)
    zeros = n_class - np.take_along_axis(counts.n_active, columns, axis=1)  # inactive images of the class
    inactive = n - counts.n_active.sum(1, keepdims=True)
    slope, intercept = np.zeros(columns.shape), prior.copy()

    def sums_at(slope: Floats, intercept: Floats) -> Floats:
        sums = NewtonSums(slope, intercept, counts.scale, columns)
        for batch in passes():
            sums.update(batch)
        if reduce is not None:
            reduce(sums)
        found, p = sums.parts, _sigmoid(intercept)
        found[0] += inactive * _softplus(intercept) - zeros * intercept + ridge / 2 * slope**2
        found[1] += ridge * slope
        found[2] += inactive * p - zeros
        found[3] += ridge
        found[5] += inactive * p * (1 - p)
        return found

    best = sums_at(slope, intercept)
    damping, n_passes = np.full(slope.shape, 1e-6), 2
    while n_passes < _MOST_PASSES:
        change_w, change_b, expected = _step(best, damping)
        if (expected <= _TOLERANCE * n).all():
            break
        trial = sums_at(slope + change_w, intercept + change_b)
        n_passes += 1
        better = trial[0] <= best[0]
        slope = np.where(better, slope + change_w, slope)
        intercept = np.where(better, intercept + change_b, intercept)
        best = np.where(better, trial, best)
        damping = np.where(better, np.maximum(damping / 10, 1e-9), damping * 10)
    null = n * _softplus(prior) - n_class * prior
    loss = best[0] - ridge / 2 * slope**2
    return LogisticProbes(
        slope=slope / counts.scale[:, None], intercept=intercept, prior=prior, bits=(null - loss) / n / np.log(2),
        n_passes=n_passes,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeScores:
    """The probe of each latent for one class on held-out images, one entry per latent; NaN where there is none."""

    slope: Floats
    """Its slope; negative where the activation speaks against the class."""
    train_bits: Floats
    """Loss reduction on the fitted images, in bits per image."""
    bits: Floats
    """Loss reduction on the held-out images, in bits per image; below 0 where the probe is worse than the prior."""
    p: Floats
    """One-sided p against labels permuted by group."""
    smallest_p: float
    """The smallest p that could have been counted; smaller ones are of a tail."""

    @property
    def q(self) -> Floats:
        """p adjusted for the number of latents (Benjamini-Hochberg)."""
        return adjusted(self.p)


def probe_scores(
    train: LabelledCodes,
    test: LabelledCodes,
    value: Ints,
    n_values: int,
    *,
    permutations: PermutationSettings | None,
    ridge: float = 0.01,
) -> ProbeScores:
    """Fit on train the probe of each latent for one class, and score it on test.

    Args:
        train, test: codes of two splits of disjoint groups.
        value: class of each latent, chosen on train (by `best_values`, or as the largest of `LogisticProbes.bits`), -1
            for none, (latents,).
        n_values: number of values of the target.
        permutations: permutations of the test labels by group; None for no test.
        ridge: as `fit_probes`.
    """
    column = np.maximum(value, 0)[:, None]
    probes = fit_probes(lambda: batches_of(train), train.codes.n_latents, n_values, classes=column, ridge=ridge)
    codes, n = test.codes, test.codes.n_images
    slope, intercept, prior = probes.slope[:, 0], probes.intercept[:, 0], probes.prior[:, 0]
    logit = slope[codes.latent] * codes.value + intercept[codes.latent]
    # the loss is linear in the labels: sum over images of softplus(logit) - label x logit
    extra = _softplus(logit) - _softplus(intercept)[codes.latent]
    fixed = n * (_softplus(prior) - _softplus(intercept)) - weighted_counts(codes.latent, extra, codes.n_latents)
    gain = logit - intercept[codes.latent]

    def bits(sums: Floats, n_class: Floats, tests: Ints) -> Floats:
        shift = (intercept - prior)[tests, None]
        found: Floats = (fixed[tests, None] + sums + n_class * shift) / (n * np.log(2))
        return found

    tested = np.where(codes.n_active > 0, value, -1)
    weights = SparseWeights(test=codes.latent, image=codes.row, weight=gain, n_tests=codes.n_latents, n_images=n)
    found = permuted_p(weights, tested, test.labels, test.groups, bits, permutations)
    hit = test.labels[codes.row] == value[codes.latent]
    sums = weighted_counts(codes.latent, gain * hit, codes.n_latents)
    n_value = np.bincount(test.labels, minlength=n_values)[column[:, 0]].astype(np.float64)
    observed = bits(sums[:, None], n_value[:, None], np.arange(codes.n_latents))[:, 0]
    return ProbeScores(
        slope=np.where(value >= 0, slope, np.nan),
        train_bits=np.where(value >= 0, probes.bits[:, 0], np.nan), bits=np.where(tested >= 0, observed, np.nan),
        p=found.p, smallest_p=found.smallest,
    )  # fmt: skip


def batches_of(part: LabelledCodes) -> Iterable[CodeBatch]:
    """Return labelled codes as one batch."""
    return [CodeBatch(part.codes.row, part.codes.latent, part.codes.value, part.labels)]


def _step(parts: Floats, damping: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the damped Newton step of both parameters, and the decrease of the loss that it promises."""
    _, grad_w, grad_b, ww, wb, bb = parts
    ww, bb = ww * (1 + damping), bb * (1 + damping) + 1e-12
    determinant = ww * bb - wb * wb
    change_w = -(bb * grad_w - wb * grad_b) / determinant
    change_b = -(ww * grad_b - wb * grad_w) / determinant
    return change_w, change_b, -(grad_w * change_w + grad_b * change_b) / 2


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit  # heavy

    found: Floats = expit(x)
    return found


def _softplus(x: Floats) -> Floats:
    """Return log(1 + exp(x))."""
    found: Floats = np.logaddexp(0.0, x)
    return found
