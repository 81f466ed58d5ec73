"""Intervals of certificates that need no resampling: delete-one jackknife, a share, a rank correlation."""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass

Floats = NDArray[np.float64]


def jackknife_interval(estimate: float, left_out: Floats, level: float) -> tuple[float, float]:
    """Return the interval of a smooth statistic from its values without each sample, with Student's t.

    Args:
        estimate: the statistic of all samples.
        left_out: the statistic without sample i, shape (samples,).
        level: nominal coverage, between 0 and 1.

    Raises: EmptyClass below 3 samples. Source: Efron and Stein 1981.
    """
    from scipy.special import stdtrit  # heavy

    n = len(left_out)
    if n < 3:
        raise EmptyClass(f"jackknife: {n} samples; at least 3 are needed.")
    error = float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return estimate - half, estimate + half


def share_interval(successes: int, n: int, level: float) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson 1934), which covers at least as often as `level`.

    Raises: ConfigError for a count out of range.

    >>> low, high = share_interval(0, 8, 0.95)
    >>> low, round(high, 3)
    (0.0, 0.369)
    """
    from scipy.special import betaincinv  # heavy

    if not 0 <= successes <= n or n < 1:
        raise ConfigError(f"a share of {successes} of {n}: counts are out of range.")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def rank_correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's correlation, with mid-ranks for ties; 0 where one side is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    first, second = _ranks(a), _ranks(b)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale > 0 else 0.0


def rank_correlation_cap(truth: Floats) -> float:
    """Return the largest Spearman correlation of an estimate without ties: below 1 if the truth has ties.

    >>> round(rank_correlation_cap(np.array([0.1, 0.5, 0.5, 0.9])), 4)
    0.9487
    """
    order = np.argsort(truth, kind="stable")
    strict = np.empty(len(truth))
    strict[order] = np.arange(len(truth))
    return rank_correlation(strict, truth)


def rank_correlation_interval(r: float, n: int, level: float) -> tuple[float, float]:
    """Return the interval of a Spearman correlation by Fisher's z, with the standard error of Bonett and Wright 2000.

    Raises: EmptyClass below 4 samples.
    """
    if n < 4:
        raise EmptyClass(f"the interval of a rank correlation needs at least 4 samples; there are {n}.")
    z = float(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)))
    half = NormalDist().inv_cdf((1 + level) / 2) * float(np.sqrt((1 + r * r / 2) / (n - 3)))
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = last - (counts - 1) / 2
    return middle[places.reshape(-1)]
