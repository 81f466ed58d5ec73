"""Associations: against plain formulas, calibration under the hypothesis, planted effects, effect sizes."""

import numpy as np
import pytest
from scipy import stats

from diffprobe.analysis.audit.association import (
    Sampling,
    associate,
    centred,
    group_effect,
    labels_of,
    mean_estimates,
    random_percentiles,
    within_prompt_sd,
)
from diffprobe.analysis.audit.direction import direction_of
from diffprobe.core.errors import ConfigError, EmptyClass

QUICK = Sampling(n_resamples=200, n_permutations=999)


def simulated(
    n: int = 30, t: int = 20, s: int = 8, d: int = 24, *, lean: float = 0.0, seed_sd: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Subjects whose expected latent is orthogonal to the direction but for `lean` of the first one."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(n, 1, 1, d))
    mean[..., 0] = 0
    subjects = mean + rng.normal(size=(1, t, 1, d)) + rng.normal(size=(1, 1, s, d)) + rng.normal(size=(n, t, 1, d))
    subjects = subjects + seed_sd * rng.normal(size=(n, 1, s, d)) + rng.normal(size=(n, t, s, d))
    subjects[0, ..., 0] += lean
    differences = 0.7 * rng.normal(size=(t, 1, d)) + 0.7 * rng.normal(size=(t, s, d))
    differences[..., 0] += 3
    return subjects.astype(np.float32), differences


def measured(subjects: np.ndarray, differences: np.ndarray, sampling: Sampling = QUICK):  # type: ignore[no-untyped-def]
    return associate(centred(subjects), differences, direction_of(differences), sampling)


def test_numbers_are_those_of_the_formulas() -> None:
    subjects, differences = simulated(n=5, lean=1.0)
    found = measured(subjects, differences)
    means = subjects.astype(np.float64).mean((1, 2))
    means -= means.mean(0)
    d = differences.mean((0, 1))
    cosine = means @ d / np.linalg.norm(means, axis=1) / np.linalg.norm(d)
    assert np.allclose(found.cosine.value, cosine, atol=1e-5)
    along = (subjects - subjects.mean(0)) @ (d / np.linalg.norm(d))
    spread = np.sqrt(np.mean([along[i, t].var(ddof=1) for i in range(5) for t in range(20)]))
    assert np.allclose(found.projection.value, means @ d / np.linalg.norm(d) / spread, atol=1e-4)
    assert np.all(found.cosine.low <= found.cosine.value) and np.all(found.cosine.value <= found.cosine.high)


def test_p_is_uniform_and_intervals_cover_if_nothing_is_associated() -> None:
    """20 templates x 8 seeds, templates clustered: 15 audits of 30 subjects."""
    p, covered = [], []
    for seed in range(15):
        found = measured(*simulated(seed=seed)).cosine
        p += found.p.tolist()
        covered += ((found.low <= 0) & (0 <= found.high)).tolist()
    # the mean of the subjects' own coordinates is not exactly 0 after centring; its effect is below the resolution
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(covered) >= 0.95 - 3 * (0.95 * 0.05 / len(covered)) ** 0.5


def test_a_discovery_needs_an_interval_that_counts_the_seeds() -> None:
    """Where seeds matter more than templates, p alone is too small: it takes the drawn seeds as given."""
    wrong_p = wrong = n = 0
    for seed in range(8):
        found = measured(*simulated(seed=seed, seed_sd=1.5)).cosine
        wrong_p += int((found.p <= 0.05).sum())
        wrong += int(((found.p <= 0.05) & ((found.low > 0) | (found.high < 0))).sum())
        n += len(found.p)
    assert wrong_p / n > 0.15
    assert wrong / n <= 0.05 + 3 * (0.05 * 0.95 / n) ** 0.5


def test_a_planted_lean_is_discovered_and_the_others_are_not() -> None:
    others, hits = 0, 0
    for seed in range(6):
        found = measured(*simulated(lean=2.5, seed=seed)).cosine.discoveries(0.05)
        hits += int(found[0])
        others += int(found[1:].sum())
    assert hits == 6 and others / (6 * 29) < 0.1


def test_exchanged_ends_turn_the_signs() -> None:
    subjects, differences = simulated(n=6, lean=1.0)
    one, other = measured(subjects, differences), measured(subjects, -differences)
    assert np.allclose(one.cosine.value, -other.cosine.value)
    assert np.allclose(one.cosine.low, -other.cosine.high, atol=0.05)
    assert np.array_equal(one.cosine.p, other.cosine.p)


def test_what_all_prompts_of_a_template_and_seed_share_cancels() -> None:
    subjects, differences = simulated(n=6)
    shift = np.random.default_rng(9).normal(size=(1, *subjects.shape[1:])).astype(np.float32) * 5
    assert np.allclose(
        measured(subjects, differences).cosine.value, measured(subjects + shift, differences).cosine.value, atol=1e-4
    )


def test_one_seed_has_no_interval_and_no_discovery() -> None:
    found = measured(*simulated(s=1, lean=50.0)).cosine
    assert found.low is None and found.high is None and found.p is not None
    assert not found.discoveries(0.05).any()
    one = measured(*simulated(t=1, lean=5.0)).cosine
    assert one.p is None and one.q is None and one.low is None


def test_five_templates_cannot_reach_five_percent() -> None:
    found = measured(*simulated(t=5, lean=50.0)).cosine
    assert found.smallest_p == pytest.approx(2 / 2**5) and found.p.min() >= 0.0625


def test_subjects_that_do_not_differ_are_refused() -> None:
    subjects, differences = simulated(n=2)
    subjects[1] = subjects[0]
    with pytest.raises(EmptyClass, match="subject 0"):
        measured(subjects, differences)
    with pytest.raises(ConfigError, match="2 subjects"):
        measured(subjects[:1], differences)


def test_means_have_the_interval_of_a_two_way_bootstrap() -> None:
    values = np.random.default_rng(0).normal(1, 1, size=(3, 20, 8))
    found = mean_estimates(values, QUICK)
    assert np.allclose(found.value, values.mean((1, 2))) and (found.low > 0.5).all() and (found.p < 0.01).all()


def test_the_spread_is_over_templates_with_one_seed() -> None:
    subjects, differences = simulated(n=4, s=1)
    unit = direction_of(differences).unit
    along = subjects.astype(np.float64) @ unit
    assert within_prompt_sd(subjects, unit) == pytest.approx(np.sqrt(along[:, :, 0].var(1, ddof=1).mean()), rel=1e-4)
    assert within_prompt_sd(subjects[:, :1], unit) == 1.0


def test_an_effect_size_is_that_of_weat_with_a_permutation_p() -> None:
    scores = np.array([0.9, 1.1, 1.3, -0.2, 0.1, 0.3, 0.0, -0.4])
    members = np.array([True] * 3 + [False] * 5)
    value, null = group_effect(scores, members, Sampling(n_permutations=4999))
    assert value == pytest.approx((scores[:3].mean() - scores[3:].mean()) / scores.std(ddof=1))
    expected = stats.permutation_test(
        (scores[:3], scores[3:]), lambda x, y, axis: np.abs(x.mean(axis) - y.mean(axis)), alternative="greater",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert null.p == pytest.approx(expected.pvalue, abs=0.01) and null.smallest_p == pytest.approx(1 / 56)
    with pytest.raises(EmptyClass, match="0 of 8"):
        group_effect(scores, np.zeros(8, dtype=bool), QUICK)


def test_groups_that_have_all_subjects_are_left_out() -> None:
    assert labels_of(["a", "a"]) == {} and labels_of([None, None]) == {}
    assert set(labels_of(["a", "b", None])) == {"a", "b"}


def test_random_directions_place_an_association() -> None:
    """For a direction that is itself random, the share is uniform; for one that a subject points along, it is 1."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(60, 12))
    found = random_percentiles(means, (u := rng.normal(size=12)) / np.linalg.norm(u))
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert random_percentiles(means, means[7] / np.linalg.norm(means[7]))[7] == 1.0
