"""Calibration by simulation: intervals cover, p-values are uniform under the null, planted effects are found.

Data are clustered as those of `emoji`: 130 groups of 1 to 12 samples, of which samples share 80 % of their variance.
Each check runs in a small version always and in a large one under `slow`. Bounds are 3.5 standard deviations of
the number of simulations; seeds are fixed.
"""

import math

import numpy as np
import pytest
from scipy.stats import kstest

from diffprobe.analysis.statistics import (
    area_of,
    benjamini_hochberg,
    bootstrap_interval,
    mean_of,
    paired_interval,
    permutation_null,
    selected_interval,
)

pytestmark = pytest.mark.slow

N_GROUPS, SHARED = 130, 0.8
SMALL_AND_LARGE = [120, pytest.param(600, marks=pytest.mark.slow)]


def groups_of(rng, n=N_GROUPS):
    return np.repeat(np.arange(n), rng.integers(1, 13, size=n))


def noise(rng, groups, shape=()):
    """Return numbers (*shape, samples) of mean 0 and variance 1, of which a group shares 80 %."""
    own, shared = rng.normal(size=(*shape, len(groups))), rng.normal(size=(*shape, groups.max() + 1))
    return math.sqrt(SHARED) * shared[..., groups] + math.sqrt(1 - SHARED) * own


def simulated(n_runs, simulate, seed=0):
    return np.array([simulate(np.random.default_rng([seed, i]), i) for i in range(n_runs)])


def require_share(found, expected, *, slack=0.0):
    """Check a share over simulations against what it should be, within 3.5 standard deviations and a known bias."""
    spread = math.sqrt(expected * (1 - expected) / len(found))
    assert abs(found.mean() - expected) <= 3.5 * spread + slack, f"{found.mean():.3f} of {len(found)}"


def require_uniform(p, n_permutations):
    """Check p-values: Kolmogorov distance within its 0.1 % bound, plus the step of the p-values."""
    distance = kstest(p, "uniform").statistic
    assert distance <= 1.95 / math.sqrt(len(p)) + 1 / (1 + n_permutations), f"distance {distance:.3f} of {len(p)}"


def covers(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("n_runs", [60, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["percentile", "expanded"])
def test_intervals_cover_their_level(n_runs, method):
    def simulate(rng, i):
        groups = groups_of(rng)
        x, y = noise(rng, groups, (2,))
        ids, options = groups.tolist(), {"n_resamples": 200, "seed": i, "method": method}
        right = [mean_of((v > 0.3).astype(float)) for v in (x, y)]
        sides = rng.random(groups.max() + 1)[groups] < 0.5
        return (
            covers(bootstrap_interval(right[0], ids, **options), 0.5 * math.erfc(0.3 / math.sqrt(2))),
            covers(paired_interval(*right, ids, **options), 0.0),
            covers(bootstrap_interval(area_of(x, sides), ids, **options), 0.5),
            covers(paired_interval(area_of(x, sides), area_of(y, sides), ids, **options), 0.0),
        )

    for column in simulated(n_runs, simulate).T:
        require_share(column, 0.95, slack=0.015)  # a percentile interval of 130 groups of other sizes: 94 %


@pytest.mark.parametrize("n_runs", SMALL_AND_LARGE)
@pytest.mark.parametrize(("n_groups", "percentile"), [(8, 0.89), (15, 0.92)])
def test_few_groups_need_the_expanded_interval(n_runs, n_groups, percentile):
    def simulate(rng, i):
        groups = groups_of(rng, n_groups)
        gain = mean_of(noise(rng, groups))
        return [
            covers(bootstrap_interval(gain, groups.tolist(), n_resamples=300, seed=i, method=method), 0.0)
            for method in ("percentile", "expanded")
        ]

    narrow, wide = simulated(n_runs, simulate, seed=1).T
    require_share(narrow, percentile, slack=0.015)
    require_share(wide, 0.95, slack=0.015)
    assert wide.mean() > narrow.mean()


def test_single_samples_in_place_of_groups_do_not_cover():
    def simulate(rng, i):
        groups = groups_of(rng)
        return covers(bootstrap_interval(mean_of(noise(rng, groups)), range(len(groups)), n_resamples=200, seed=i), 0.0)

    assert simulated(100, simulate).mean() < 0.75


def labels_of(kind, rng, groups):
    """Return labels 0 and 1: one per group, both within each group, or both kinds of groups."""
    whole, single = rng.integers(2, size=groups.max() + 1)[groups], rng.integers(2, size=len(groups))
    mixed = np.where(rng.random(groups.max() + 1)[groups] < 0.5, whole, single)
    return {"between": whole, "within": single, "mixed": mixed}[kind]


def accuracy(predicted):
    return lambda labels: (labels == predicted).mean(1)


@pytest.mark.parametrize("n_runs", SMALL_AND_LARGE)
@pytest.mark.parametrize("kind", ["between", "within", "mixed"])
def test_p_values_are_uniform_under_the_null(n_runs, kind):
    n_permutations = 99

    def simulate(rng, i):
        groups = groups_of(rng)
        predicted = (noise(rng, groups) > 0).astype(int)
        labels = labels_of(kind, rng, groups)
        null = permutation_null(
            accuracy(predicted), labels, groups.tolist(), n_permutations=n_permutations, seed=10_000 + i
        )
        ties = (null.values == null.observed).sum()  # accuracies are discrete: p at random within its ties is uniform
        return null.p - rng.random() * (1 + ties) / (1 + n_permutations)

    require_uniform(simulated(n_runs, simulate, seed=2), n_permutations)


def test_permuting_single_samples_finds_what_is_not_there():
    def simulate(rng, i):
        groups = groups_of(rng)
        predicted = (noise(rng, groups) > 0).astype(int)
        labels = labels_of("between", rng, groups)
        return [
            permutation_null(accuracy(predicted), labels, ids, n_permutations=99, seed=i).p <= 0.05
            for ids in (groups.tolist(), range(len(groups)))
        ]

    by_group, by_sample = simulated(100, simulate, seed=3).T
    assert by_sample.mean() > 0.15 and by_group.mean() <= 0.12


@pytest.mark.parametrize("n_runs", SMALL_AND_LARGE)
def test_planted_effects_are_found(n_runs):
    """A shift of 0.6 standard deviations, an area of 0.66, is found by 88 % of permutations and 70 % of intervals."""

    def simulate(rng, i):
        groups = groups_of(rng)
        labels = labels_of("between", rng, groups)
        x = noise(rng, groups) + 0.6 * labels
        y = noise(rng, groups)
        ids = groups.tolist()
        null = permutation_null(accuracy((x > 0.3).astype(int)), labels, ids, n_permutations=99, seed=i)
        curves = [area_of(v, labels == 1) for v in (x, y)]
        return null.p <= 0.05, paired_interval(*curves, ids, n_resamples=200, seed=i).low > 0

    permutation, paired = simulated(n_runs, simulate, seed=4).T
    assert permutation.mean() > 0.65 and paired.mean() > 0.4, (permutation.mean(), paired.mean())


@pytest.mark.parametrize("n_runs", SMALL_AND_LARGE)
def test_the_false_discovery_rate_over_cells_is_kept(n_runs):
    """Twenty cells of which five hold an effect: a share of at most 5 % of the discoveries is false."""

    def simulate(rng, i):
        groups = groups_of(rng, 60)
        labels = labels_of("between", rng, groups)
        x = noise(rng, groups, (20,))
        x[:5] += 1.2 * labels
        p = [
            permutation_null(accuracy((v > 0).astype(int)), labels, groups.tolist(), n_permutations=399, seed=i).p
            for v in x
        ]
        found = np.array(benjamini_hochberg(p).found(0.05))
        return found[5:].sum() / max(found.sum(), 1), found[:5].mean()

    false, power = simulated(max(n_runs // 10, 20), simulate, seed=5).T
    assert false.mean() <= 0.05 + 3.5 * false.std() / math.sqrt(len(false)) and power.mean() > 0.5, (
        false.mean(),
        power.mean(),
    )


@pytest.mark.parametrize("n_runs", SMALL_AND_LARGE)
@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_the_interval_of_a_selected_cell_covers(n_runs, gap):
    """Eight cells, alike or each a little better than the one before: the truth is that of the cell chosen on val."""
    truth = gap * np.arange(8)

    def simulate(rng, i):
        splits = []
        for offset in (0, N_GROUPS):
            groups = groups_of(rng)
            base = 0.7 * noise(rng, groups)  # what all cells get right alike
            cells = [mean_of(mean + base + 0.7 * noise(rng, groups)) for mean in truth]
            splits += [cells, (groups + offset).tolist()]
        found = selected_interval(*splits, n_resamples=200, seed=i)
        on_val = bootstrap_interval(splits[0][found.chosen], splits[1], n_resamples=200, seed=i)
        return covers(found.interval, truth[found.chosen]), covers(on_val, truth[found.chosen]), found.optimism > 0

    covered, naive, optimism = simulated(n_runs, simulate, seed=6).T
    assert covered.mean() >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / n_runs) - 0.015, covered.mean()
    assert optimism.mean() > 0.9 and naive.mean() < covered.mean(), (naive.mean(), covered.mean())
