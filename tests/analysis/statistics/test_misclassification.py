import numpy as np
import pytest

from diffprobe.analysis.statistics import confusion_counts, corrected_shares, rogan_gladen
from diffprobe.analysis.statistics.misclassification import onto_simplex
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, UninformativeReader


def test_two_values_are_the_closed_form():
    confusion = np.array([[80, 20], [10, 90]])
    found = corrected_shares(np.array([60, 40]), confusion)
    assert found.corrected[1] == pytest.approx(rogan_gladen(0.4, 0.9, 0.8))
    assert found.corrected[1] == pytest.approx((0.4 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert found.low[1] < found.corrected[1] < found.high[1]


def test_exact_frequencies_give_back_the_truth():
    true, rates = np.array([0.2, 0.3, 0.5]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.1, 0.9]])
    read = np.rint(true @ rates * 10_000).astype(int)
    found = corrected_shares(read, np.rint(rates * 1000).astype(int))
    assert found.corrected == pytest.approx(true, abs=1e-9)
    assert np.abs(found.read - true).max() > 0.015  # the correction has something to do


def test_what_leaves_the_simplex_is_projected():
    confusion = np.array([[80, 20], [10, 90]])
    found = corrected_shares(np.array([95, 5]), confusion)  # fewer positives than false positives alone would give
    assert found.corrected.tolist() == [1.0, 0.0] and found.n_clipped > 0
    assert rogan_gladen(0.05, 0.9, 0.8) == 0.0 and rogan_gladen(1.0, 0.9, 0.8) == 1.0


def test_the_projection_is_the_nearest_point_of_a_grid():
    grid = np.array([[i, j, 50 - i - j] for i in range(51) for j in range(51 - i)]) / 50
    for point in np.random.default_rng(0).normal(0.3, 0.6, size=(20, 3)):
        nearest = grid[((grid - point) ** 2).sum(1).argmin()]
        found = onto_simplex(point)
        assert found.sum() == pytest.approx(1) and found.min() >= 0
        assert ((found - point) ** 2).sum() <= ((nearest - point) ** 2).sum() + 1e-12
        assert np.abs(found - nearest).max() < 0.03


def test_confusion_counts_by_a_plain_loop():
    generator = np.random.default_rng(0)
    true, read = generator.integers(3, size=(2, 200))
    expected = np.zeros((3, 3), dtype=int)
    for one, other in zip(true, read, strict=True):
        expected[one, other] += 1
    assert (confusion_counts(true, read, 3) == expected).all()


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
def test_intervals_cover_the_truth(rate):
    """95 % intervals of 100 images and 300 validated ones, over 400 simulations: Monte-Carlo error is 1.1 points."""
    generator, sensitivity, specificity, n_simulations = np.random.default_rng(1), 0.93, 0.96, 400
    covered = 0
    for number in range(n_simulations):
        positives = generator.binomial(150, sensitivity)
        negatives = generator.binomial(150, specificity)
        confusion = np.array([[negatives, 150 - negatives], [150 - positives, positives]])
        read = generator.binomial(100, rate * sensitivity + (1 - rate) * (1 - specificity))
        found = corrected_shares(np.array([100 - read, read]), confusion, n_resamples=400, seed=number)
        covered += found.low[1] <= rate <= found.high[1]
    assert covered / n_simulations >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / n_simulations)
    if rate in (0.1, 0.5, 0.9):  # at 0.02 clipping makes intervals longer than needed
        assert covered / n_simulations <= 0.95 + 3.5 * np.sqrt(0.95 * 0.05 / n_simulations)


def test_an_uncorrected_interval_would_not_cover():
    """The same simulation without the validation sample's variation and correction misses: the test could fail."""
    generator = np.random.default_rng(1)
    shares = generator.binomial(100, 0.02 * 0.8 + 0.98 * 0.15, size=400) / 100
    width = 1.96 * np.sqrt(shares * (1 - shares) / 100)
    assert np.mean(np.abs(shares - 0.02) <= width) < 0.1


def test_both_samples_widen_the_interval():
    read = np.array([500, 500])
    few = corrected_shares(read, np.array([[18, 2], [2, 18]]))
    many = corrected_shares(read, np.array([[1800, 200], [200, 1800]]))
    fewer_images = corrected_shares(read // 20, np.array([[1800, 200], [200, 1800]]))
    assert few.high[1] - few.low[1] > 2 * (many.high[1] - many.low[1])
    assert fewer_images.high[1] - fewer_images.low[1] > 2 * (many.high[1] - many.low[1])


def test_degenerate_cases_are_refused_by_name():
    with pytest.raises(UninformativeReader, match="0.5"):
        rogan_gladen(0.3, 0.5, 0.5)
    with pytest.raises(UninformativeReader, match="0.4"):
        corrected_shares(np.array([5, 5]), np.array([[50, 50], [60, 40]]))
    with pytest.raises(UninformativeReader):
        corrected_shares(np.array([5, 5, 5]), np.array([[9, 1, 1], [5, 5, 5], [5, 5, 5]]))
    with pytest.raises(EmptyClass, match="1"):
        corrected_shares(np.array([5, 5]), np.array([[50, 5], [0, 0]]))
    with pytest.raises(EmptyClass):
        corrected_shares(np.array([0, 0]), np.array([[50, 5], [5, 50]]))
    with pytest.raises(ConfigError, match="1.2"):
        rogan_gladen(1.2, 0.9, 0.9)
    with pytest.raises(NonFinite):
        rogan_gladen(float("nan"), 0.9, 0.9)
    with pytest.raises(ConfigError):
        corrected_shares(np.array([5, 5]), np.eye(3, dtype=int))
    with pytest.raises(ConfigError):
        confusion_counts(np.array([0, 3]), np.array([0, 1]), 3)
