"""Benjamini-Hochberg with the number of tests."""

import numpy as np
import pytest

from diffprobe.analysis.statistics import benjamini_hochberg
from diffprobe.core.errors import ConfigError, NonFinite


def test_adjusted_values_are_those_of_the_definition():
    p = np.random.default_rng(0).random(20) ** 3
    order = np.argsort(p)
    expected = np.empty(20)
    expected[order] = np.minimum.accumulate((p[order] * 20 / np.arange(1, 21))[::-1])[::-1].clip(max=1)
    found = benjamini_hochberg(p.tolist())
    assert found.adjusted == pytest.approx(expected) and found.n_tests == 20
    assert found.found(0.1) == tuple(expected <= 0.1)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="no p-value"):
        benjamini_hochberg([])
    with pytest.raises(NonFinite, match="p-value 1 is NaN"):
        benjamini_hochberg([0.1, float("nan")])
    with pytest.raises(ConfigError, match=r"0\.0 to 0\.5"):
        benjamini_hochberg([0.0, 0.5])
