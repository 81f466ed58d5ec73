"""Null distributions of a statistic repeat with their seed; what has no null is named."""

import math

import numpy as np
import pytest

from diffprobe.analysis.statistics import permutation_null
from diffprobe.core.errors import ConfigError, EmptyClass, TooFewGroups


def test_a_null_is_of_the_statistic_and_repeats_with_its_seed():
    labels, clusters = np.arange(60) // 3 % 2, np.arange(60) // 3
    nulls = [permutation_null(lambda y: (y == labels).mean(1), labels, clusters, seed=seed) for seed in (0, 0, 1)]
    assert nulls[0].observed == 1 and nulls[0].p == nulls[0].smallest_p == 1 / 1001
    assert nulls[0].mean == pytest.approx(0.5, abs=0.02)
    assert (nulls[0].values == nulls[1].values).all() and (nulls[0].values != nulls[2].values).any()
    spread = math.sqrt(1 / 19) / 2  # of 20 groups, not of 60 samples
    assert nulls[0].values.std() == pytest.approx(spread, rel=0.1)


def test_what_has_no_null_is_named():
    same = lambda y: np.zeros(len(y))  # noqa: E731
    with pytest.raises(TooFewGroups, match=r"1 group in 3(.|\n)*estimate itself stands"):
        permutation_null(same, np.zeros(3, dtype=int), [0, 0, 0])
    with pytest.raises(EmptyClass, match=r"3 groups with 1 label(.|\n)*without a null(.|\n)*two classes"):
        permutation_null(same, np.zeros(3, dtype=int), range(3))
    with pytest.raises(EmptyClass, match="true labels"):
        permutation_null(lambda y: np.full(len(y), np.nan), np.arange(3), range(3))
    with pytest.raises(EmptyClass, match=r"draws(.|\n)*without a null"):
        permutation_null(lambda y: np.where((y == np.arange(9)).all(1), 1.0, np.nan), np.arange(9), range(9))
    with pytest.raises(ConfigError, match="3 labels for groups of 2"):
        permutation_null(same, np.arange(3), range(2))
    with pytest.raises(ConfigError, match="n_permutations=0"):
        permutation_null(same, np.arange(3), range(3), n_permutations=0)
