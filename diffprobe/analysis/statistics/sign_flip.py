"""Sign-flip permutations of paired differences: exact if each difference is symmetric around 0 under the hypothesis."""

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.null_distribution import Null

_LARGEST_EXACT = 14
"""Most pairs for which all sign patterns are enumerated."""


def sign_flip_nulls(values: NDArray[np.float64], *, n_permutations: int = 9999, seed: int = 0) -> list[Null]:
    """Return the null distribution of the absolute mean of paired differences, for several sets of the same pairs.

    The hypothesis: exchanging both members of any pair, which flips the sign of its difference, does not change the
    distribution. The test is two-sided. All patterns are enumerated where they are not more than `n_permutations`;
    else patterns are drawn at random, the same ones for all sets.

    Args:
        values: differences, shape (sets, pairs).
        n_permutations: patterns that are drawn.
        seed: seed of the patterns.

    Returns: one `Null` per set; its smallest p is at least 2 / 2^pairs.
    Raises: ConfigError for no pair or no permutation; NonFinite.

    >>> [round(null.p, 3) for null in sign_flip_nulls(np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1, -1, 1, -1, 0.5]]))]
    [0.062, 1.0]
    """
    if values.ndim != 2 or not values.shape[1] or n_permutations < 1:
        raise ConfigError(
            f"sign flips: values of shape {values.shape}, n_permutations={n_permutations}; needed: (sets, pairs), and "
            "at least 1 permutation."
        )
    if not np.isfinite(values).all():
        raise NonFinite(f"sign flips: set {int(np.flatnonzero(~np.isfinite(values).all(1))[0])} has a number that is "
                        "not finite.")  # fmt: skip
    signs = _signs(values.shape[1], n_permutations, seed)
    means = np.abs(values @ signs.T) / values.shape[1]
    observed = np.abs(values.mean(1))
    distinct = 2.0 ** (values.shape[1] - 1)  # a pattern and its reverse have the same absolute mean
    return [
        Null(observed=float(one), values=drawn, n_permutations=len(signs), n_distinct=distinct)
        for one, drawn in zip(observed, means, strict=True)
    ]


def smallest_sign_flip_p(n_pairs: int, n_permutations: int = 9999) -> float:
    """Return the smallest two-sided p that a sign-flip test of so many pairs can have.

    >>> smallest_sign_flip_p(5), smallest_sign_flip_p(20)
    (0.0625, 0.0001)
    """
    return max(2.0 ** (1 - n_pairs), 1 / (1 + n_permutations))


def _signs(n: int, n_permutations: int, seed: int) -> NDArray[np.float64]:
    """Return patterns of +1 and -1, shape (patterns, n), without the one that changes nothing if all are enumerated."""
    if n <= _LARGEST_EXACT and 2 ** (n - 1) <= n_permutations + 1:
        codes = np.arange(1, 2 ** (n - 1))
        return np.asarray(1.0 - 2.0 * ((codes[:, None] >> np.arange(n)) & 1), dtype=np.float64)
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_permutations, n))
