"""sigma_label against sums over all outcomes, draws, and the chance levels of Revelio's data sets."""

import itertools

import numpy as np
import pytest

from diffprobe.analysis.label_spread import chance_spread, label_spread, mean_of_first, renumbered_spread
from diffprobe.core.errors import ConfigError, EmptyClass


def ref_chance(frequencies, n):
    share = np.array(frequencies) / sum(frequencies)
    outcomes = itertools.product(range(len(share)), repeat=n)
    return sum(np.prod(share[list(ids)]) * np.std(ids, ddof=1) for ids in outcomes)


@pytest.mark.parametrize(
    ("frequencies", "n"),
    [([1, 1], 2), ([1, 2, 5], 4), ([3, 0, 0, 1, 2], 3), ([1] * 6, 5), ([1, *[0] * 10, 9], 2), ([1, 9, 1], 9)],
)
def test_chance_is_the_sum_over_all_outcomes(frequencies, n):
    assert chance_spread(frequencies, n) == pytest.approx(ref_chance(frequencies, n), rel=1e-7)


def test_chance_does_not_depend_on_where_the_numbering_starts_or_on_the_scale_of_frequencies():
    expected = chance_spread([0.2, 0.3, 0.5], 10)
    assert chance_spread([0, 0, 2, 3, 5], 10) == pytest.approx(expected, rel=1e-9)
    assert chance_spread([5, 3, 2], 10) == pytest.approx(expected, rel=1e-9)
    assert chance_spread([0, 4], 10) == 0


@pytest.mark.parametrize(("name", "n_classes", "chance"), [("Oxford-IIIT Pet", 37, 10.53), ("Caltech-101", 102, 29.05)])
def test_random_labels_of_revelios_sets_have_the_chance_level(name, n_classes, chance):
    assert chance_spread([1] * n_classes, 10) == pytest.approx(chance, abs=0.01)
    generator = np.random.default_rng(0)
    labels = np.resize(np.arange(n_classes), 3680)  # as many images as Pet has
    top = np.stack([generator.permutation(3680)[:10] for _ in range(20_000)])
    assert label_spread(labels[top]).mean() == pytest.approx(chance, rel=0.005)


def test_the_spread_is_the_unbiased_standard_deviation_of_the_images_there_are():
    labels = np.array([[3, 5, 10, -1], [4, 4, 4, 4], [7, -1, -1, -1], [-1, -1, -1, -1]])
    found = label_spread(labels)
    assert found[:2] == pytest.approx([np.std([3, 5, 10], ddof=1), 0.0])
    assert np.isnan(found[2:]).all()


def test_numberings_keep_which_images_share_a_class():
    labels = np.array([[0, 0, 0], [0, 1, 2], [2, 2, -1]])
    found = renumbered_spread(labels, 3, 50, np.random.default_rng(0))
    assert found.shape == (50, 3) and (found[:, [0, 2]] == 0).all()
    assert found[:, 1] == pytest.approx(np.ones(50))  # three classes of three: any numbering has spread 1
    two = renumbered_spread(np.array([[0, 1, 1]]), 10, 500, np.random.default_rng(0))[:, 0]
    assert two.std() > 0.5  # the same two classes, closer or further apart


def test_means_of_the_first_latents_leave_out_what_is_not_defined():
    means, n = mean_of_first(np.array([[1.0, np.nan, 5.0], [np.nan, np.nan, 2.0]]), [1, 2, 3, 100])
    assert means[0].tolist() == [1, 1, 3, 3] and n.tolist() == [[1, 1, 2, 2], [0, 0, 1, 1]]
    assert np.isnan(means[1, :2]).all() and means[1, 2:].tolist() == [2, 2]


def test_too_few_images_and_no_images_are_refused():
    with pytest.raises(ConfigError, match="n=1"):
        chance_spread([1, 1], 1)
    with pytest.raises(EmptyClass, match="3 classes"):
        chance_spread([0, 0, 0], 10)
