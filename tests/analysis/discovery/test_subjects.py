"""How components depend on subjects."""

import numpy as np
import pytest

from diffprobe.analysis.discovery.subjects import Design, subject_dependence, subject_intervals
from diffprobe.core.errors import ConfigError, TooFewGroups


def design(n_subjects: int = 6, n_seeds: int = 30, *, paired: bool = False) -> Design:
    subjects = np.repeat(np.arange(n_subjects), n_seeds)
    blocks = tuple(str(i % n_seeds) for i in range(len(subjects))) if paired else None
    return Design(names=tuple("abcdefghij"[:n_subjects]), subjects=subjects, blocks=blocks)


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("paired", [False, True])
def test_a_dependence_is_found_and_its_subject_named(paired):
    made = design(paired=paired)
    x = np.random.default_rng(0).normal(size=(180, 2))
    x[made.subjects == 2, 0] += 2
    tied, free = subject_dependence(standard(x), made, n_permutations=199)
    assert tied.null.p == tied.null.smallest_p and free.null.p > 0.02
    assert int(np.argmax(tied.means)) == 2 and tied.p[2] <= 0.01 and (free.p > 0.01).all()
    expected = sum(30 * x[made.subjects == i, 0].mean() ** 2 for i in range(6))
    column = standard(x)[:, 0]
    expected = sum(30 * column[made.subjects == i].mean() ** 2 for i in range(6)) / 180
    assert tied.share == pytest.approx(expected)


def test_p_of_noise_is_uniform():
    x = standard(np.random.default_rng(1).normal(size=(180, 120)))
    found = subject_dependence(x, design(), n_permutations=99)
    p = np.array([one.null.p for one in found])
    assert (p <= 0.05).mean() < 0.12 and 0.4 < p.mean() < 0.6
    assert (np.array([one.p.min() for one in found]) <= 0.05).mean() < 0.12


def test_shared_noise_is_not_counted_as_a_subject():
    """What seeds share shifts all subjects alike; permuting within seeds takes it out, so that small effects show."""
    generator = np.random.default_rng(0)
    made = design(paired=True)
    shared = 3 * generator.normal(size=30)
    x = generator.normal(size=180) * 0.5 + shared[np.tile(np.arange(30), 6)] + 0.4 * (made.subjects == 0)
    paired = subject_dependence(standard(x)[:, None], made, n_permutations=199)[0]
    single = subject_dependence(standard(x)[:, None], design(), n_permutations=199)[0]
    assert paired.null.p < 0.05 < single.null.p


def test_intervals_hold_the_rates():
    made = design(n_seeds=60)
    has = np.random.default_rng(0).random(360) < np.where(made.subjects == 1, 0.7, 0.2)
    found = subject_intervals(has.astype(float), made, n_resamples=300)
    assert [one.estimate for one in found] == [pytest.approx(has[made.subjects == i].mean()) for i in range(6)]
    assert found[1].low > 0.35 and all(one.low <= one.estimate <= one.high for one in found)


def test_bad_designs_are_refused():
    with pytest.raises(TooFewGroups, match="1 subject"):
        Design(names=("a",), subjects=np.zeros(50, dtype=np.int64))
    with pytest.raises(TooFewGroups, match="'b' with 2"):
        Design(names=("a", "b"), subjects=np.array([0] * 10 + [1] * 2))
    with pytest.raises(ConfigError, match="10"):
        Design(names=("a", "b"), subjects=np.array([0, 1] * 5), blocks=("x",) * 9)
