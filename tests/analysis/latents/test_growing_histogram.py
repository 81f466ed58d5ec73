"""One pass with growing bins against counting with the final bins."""

import numpy as np
import pytest

from diffprobe.analysis.latents.growing_histogram import GrowingHistograms
from diffprobe.core.errors import ConfigError

N_LATENTS = 5


@pytest.fixture
def values():
    """Values over twelve orders of magnitude, growing and not, with exact powers of two; latent 4 has none."""
    generator = np.random.default_rng(2)
    latent = generator.integers(0, N_LATENTS - 1, 400)
    value = 10.0 ** generator.uniform(-6, 6, 400) * np.where(latent == 0, 1e-30, 1.0)
    value[:8] = [1, 2, 4, 0.5, 3, 2, 1024, 0.25]
    return latent, value


def counts(histograms):
    return [histograms.of(latent) for latent in range(N_LATENTS)]


def ref_counts(latent, value, n_bins):
    found = []
    for number in range(N_LATENTS):
        mine = value[latent == number]
        if not len(mine):
            found.append(([], 0.0))
            continue
        end = 2.0 ** np.ceil(np.log2(mine.max()))
        end = end * 2 if mine.max() == end else end
        inside = np.histogram(mine, bins=n_bins, range=(0, end))[0]
        n = int(np.flatnonzero(inside)[-1]) + 1
        found.append((inside[:n].tolist(), end * n / n_bins))
    return found


@pytest.mark.parametrize("n_bins", [2, 8, 32])
def test_equals_a_second_pass_with_the_final_bins(values, n_bins):
    whole = GrowingHistograms(N_LATENTS, n_bins)
    for part in np.array_split(np.arange(400), 50):
        whole.update(values[0][part], values[1][part])
    assert counts(whole) == ref_counts(*values, n_bins)


def test_order_batches_and_processes_do_not_matter(values):
    whole = GrowingHistograms(N_LATENTS)
    whole.update(*values)
    order = np.random.default_rng(0).permutation(400)
    parts = [GrowingHistograms(N_LATENTS) for _ in range(3)]
    for i, rows in enumerate(np.array_split(order, 9)):
        parts[i % 3].update(values[0][rows], values[1][rows])
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert counts(parts[2]) == counts(whole)


def test_a_far_larger_value_moves_all_others_into_the_first_bin():
    found = GrowingHistograms(1, 4)
    found.update(np.array([0, 0]), np.array([1e-40, 2e-40]))
    found.update(np.array([0]), np.array([3.0]))
    assert found.of(0) == ([2, 0, 0, 1], 4.0)


def test_sizes_that_do_not_fit_are_refused():
    for n_latents, n_bins in ((0, 4), (1, 3), (1, 0)):
        with pytest.raises(ConfigError, match=f"n_latents={n_latents}, n_bins={n_bins}"):
            GrowingHistograms(n_latents, n_bins)
    with pytest.raises(ConfigError, match=r"\(2, 4\) and \(1, 4\)"):
        GrowingHistograms(1, 4).merge(GrowingHistograms(2, 4))
