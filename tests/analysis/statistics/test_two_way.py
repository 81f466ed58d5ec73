"""Two-way bootstrap: against a plain loop, and coverage of simulated crossed designs."""

import numpy as np
import pytest

from diffprobe.analysis.statistics import TwoWayResamples
from diffprobe.core.errors import ConfigError, TooFewGroups


def test_means_are_those_of_repeated_rows_and_columns() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    resamples = TwoWayResamples(4, 5, n_resamples=7, seed=3)
    found = resamples.means(values)
    generator = np.random.default_rng(3)
    rows = generator.multinomial(4, np.full(4, 0.25), size=7)
    columns = generator.multinomial(5, np.full(5, 0.2), size=7)
    for r in range(7):
        drawn = np.repeat(np.repeat(values, rows[r], axis=1), columns[r], axis=2)
        assert drawn.shape == values.shape
        assert np.allclose(found[r], drawn.mean((1, 2)))


def test_the_order_of_sets_does_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4, 5))
    resamples = TwoWayResamples(4, 5, n_resamples=9)
    assert np.allclose(resamples.means(values)[:, ::-1], resamples.means(values[::-1]))
    assert np.allclose(resamples.means(values[2]), resamples.means(values)[:, 2])


@pytest.mark.parametrize(("row_sd", "column_sd", "cell_sd"), [(1, 0, 0.5), (0, 1, 0.5), (1, 1, 1), (0.5, 0.5, 2)])
def test_intervals_cover_the_mean_of_a_crossed_design(row_sd: float, column_sd: float, cell_sd: float) -> None:
    """20 templates and 8 seeds, 400 designs. The bootstrap may be conservative; it must not be too narrow."""
    rng, hits, n = np.random.default_rng(1), 0, 400
    for number in range(n):
        values = (
            row_sd * rng.normal(size=(20, 1)) + column_sd * rng.normal(size=(1, 8)) + cell_sd * rng.normal(size=(20, 8))
        )
        resamples = TwoWayResamples(20, 8, n_resamples=300, seed=number)
        found = resamples.interval(values.mean(), resamples.means(values))
        hits += found.low <= 0 <= found.high
    assert hits / n >= 0.95 - 3 * (0.95 * 0.05 / n) ** 0.5


def test_resampling_cells_alone_would_be_too_narrow() -> None:
    """The control of the test above: an interval that ignores the seeds covers far less than it states."""
    rng, hits, n = np.random.default_rng(1), 0, 200
    for _ in range(n):
        values = rng.normal(size=(1, 8)) + 0.5 * rng.normal(size=(20, 8))
        error = values.std(ddof=1) / values.size**0.5
        hits += abs(values.mean()) <= 1.96 * error
    assert hits / n < 0.6


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_a_single_row_or_column_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(TooFewGroups, match="1 group"):
        TwoWayResamples(*shape)


def test_another_design_is_refused() -> None:
    with pytest.raises(ConfigError, match="4, 5"):
        TwoWayResamples(4, 5).means(np.zeros((5, 4)))
    with pytest.raises(ConfigError, match="level"):
        TwoWayResamples(4, 5).interval(0.0, np.zeros(1000), level=1.0)
