"""Resamples that many statistics share: the intervals are those of `paired_interval`."""

import numpy as np
import pytest

from diffprobe.analysis.statistics import PairedResamples, mean_of, paired_interval
from diffprobe.core.errors import ConfigError

N = 90
CLUSTERS = [f"g{i // 3}" for i in range(N)]


@pytest.mark.parametrize("method", ["percentile", "expanded"])
def test_an_interval_is_that_of_the_two_statistics_alone(method):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, N)) + np.array([[0.4], [0.0]])
    resamples = PairedResamples(CLUSTERS, n_resamples=300, seed=5)
    ours = resamples.interval(resamples.of(mean_of(one)), resamples.of(mean_of(other)), method=method)
    theirs = paired_interval(mean_of(one), mean_of(other), CLUSTERS, n_resamples=300, seed=5, method=method)
    assert (ours.low, ours.high, ours.estimate) == pytest.approx((theirs.low, theirs.high, theirs.estimate), abs=1e-12)
    assert ours.n_clusters == N // 3


def test_another_number_of_samples_or_level_is_refused():
    resamples = PairedResamples(CLUSTERS, n_resamples=10)
    with pytest.raises(ConfigError, match="90 samples for a statistic of 4"):
        resamples.of(mean_of(np.zeros(4)))
    values = resamples.of(mean_of(np.zeros(N)))
    with pytest.raises(ConfigError):
        resamples.interval(values, values, level=1.0)
