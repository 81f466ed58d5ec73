import numpy as np
import pytest
from scipy.stats import spearmanr

from diffprobe.analysis.matrix_link import matrix_link
from diffprobe.core.errors import ConfigError, EmptyClass


def planted(n=8, noise=0.1, seed=0):
    draw = np.random.default_rng(seed)
    one = draw.random((n, n))
    return one, one + noise * draw.random((n, n))


def test_it_is_spearman_of_the_pairs_of_different_classes():
    one, other = planted(noise=1.0)
    found = matrix_link(one, other, n_permutations=20, n_resamples=20)
    pairs = ~np.eye(8, dtype=bool)
    assert found.null.observed == pytest.approx(spearmanr(one[pairs], other[pairs]).statistic, abs=1e-12)
    changed = one + 5 * np.eye(8)
    assert matrix_link(changed, other, n_permutations=1, n_resamples=1).null.observed == found.null.observed


def test_a_planted_link_is_found_and_an_unrelated_matrix_is_not():
    one, other = planted()
    link = matrix_link(one, other, n_permutations=200, n_resamples=200)
    assert link.null.p == link.null.smallest_p == 1 / 201 and link.interval[0] > 0.8
    unrelated = [matrix_link(planted(seed=s)[0], planted(seed=99 + s)[0], n_permutations=99, n_resamples=2).null.p
                 for s in range(40)]  # fmt: skip
    assert 0.3 < np.mean(unrelated) < 0.7 and np.mean(np.array(unrelated) <= 0.1) < 0.3


def test_few_classes_bound_p_and_the_order_of_classes_has_no_effect():
    one, other = planted(n=3)
    link = matrix_link(one, other, n_permutations=500, n_resamples=50)
    assert link.null.smallest_p == pytest.approx(1 / 6)
    order = [2, 0, 1]
    moved = matrix_link(one[np.ix_(order, order)], other[np.ix_(order, order)], n_permutations=5, n_resamples=5)
    assert moved.null.observed == pytest.approx(link.null.observed)


def test_what_has_no_ranks_is_refused():
    one, _ = planted(n=4)
    with pytest.raises(EmptyClass, match="equal"):
        matrix_link(one, np.eye(4))
    with pytest.raises(ConfigError, match="3 classes"):
        matrix_link(one[:2, :2], one[:2, :2])
