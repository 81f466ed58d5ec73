"""Predictions of a readout beside those of rungs of the control ladder, over the same samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.statistics import Null, Statistic, bootstrap_interval, paired_interval
from diffprobe.core.errors import ConfigError, EmptyClass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Literal["accuracy", "balanced_accuracy"]


@dataclass(frozen=True, kw_only=True)
class ReadoutRules:
    """Thresholds and settings of the checks."""

    metric: Metric = "balanced_accuracy"
    """The score."""
    least_score: float = 0.5
    """Least score."""
    least_gain: float = 0.2
    """Least gain over each rung; its interval also has to exclude 0."""
    alpha: float = 0.05
    """Largest p of permuted labels."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_permutations: int = 1000
    """Permutations of the labels."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""


def score_of(metric: Metric, predicted: Ints, labels: Ints) -> float:
    """Return the accuracy, or its mean over the classes of `labels`.

    Raises: EmptyClass without samples.

    >>> score_of("balanced_accuracy", np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    if not len(labels):
        raise EmptyClass(f"{metric} of no samples.")
    hits = (predicted == labels).astype(np.float64)
    if metric == "accuracy":
        return float(hits.mean())
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=hits)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def readout_checks(predicted: Ints, rungs: Mapping[str, Ints], labels: Ints, rules: ReadoutRules) -> tuple[Check, ...]:
    """Measure the score of predictions, and their gain over each rung.

    Args:
        predicted: class id of each test sample.
        rungs: name -> predictions of a rung for the same samples; the predictions themselves gain 0 over themselves.
        labels: true class ids, from 0.

    Returns: the score with the null distribution of permuted labels, and `gain` for each rung with a paired interval.
    Raises: ConfigError for predictions of another number; EmptyClass if the labels are of one class.
    """
    for name, given in {"the readout": predicted, **rungs}.items():
        if given.shape != labels.shape:
            raise ConfigError(f"{name}: predictions of the shape {given.shape} for {len(labels)} samples.")
    if len(np.unique(labels)) < 2:
        raise EmptyClass("the test samples are of one class, so there is nothing to read.")
    rows, metric = range(len(labels)), rules.metric

    def score(answers: Ints) -> Statistic:
        return lambda at: score_of(metric, answers[at], labels[at])

    found = bootstrap_interval(
        score(predicted), rows, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
    )
    generator = np.random.default_rng(rules.seed)
    values = [score_of(metric, predicted, generator.permutation(labels)) for _ in range(rules.n_permutations)]
    null = Null(observed=found.estimate, values=np.array(values), n_permutations=rules.n_permutations)
    checks = [
        Check(
            name=metric, value=found.estimate, interval=(found.low, found.high), n=len(labels), null=null.describe(),
            rule=Rule(keys="least_score, alpha", low=rules.least_score, alpha=rules.alpha),
            what="score on test; intervals resample scenes, p is from permuted labels",
        )
    ]  # fmt: skip
    for name, other in rungs.items():
        gain = paired_interval(
            score(predicted), score(other), rows, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
        )  # fmt: skip
        checks.append(
            Check(
                name="gain", target=name, value=gain.estimate, interval=(gain.low, gain.high), n=len(labels),
                rule=Rule(keys="least_gain", low=rules.least_gain, interval_above=0.0),
                what=f"{metric} minus that of the rung, over the same samples; the interval is paired",
            )
        )  # fmt: skip
    return tuple(checks)
