import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.analysis.lifetimes import find_lifetimes, peak_agreement
from diffprobe.core.errors import ConfigError

TIMES = (0, 100, 300, 700)


def found(strength, n=100, **settings):
    strength = np.array(strength, dtype=float)
    active = np.where(strength > 0, 50, 0)
    return find_lifetimes(TIMES, np.full(4, n), active, strength * n, **settings)


def test_birth_peak_and_death_of_known_curves():
    lives = found([
        [0, 1, 4, 3],      # born in the noise, dies between 300 and 100
        [5, 0, 0, 0],      # at the end only
        [2, 2, 2, 2],      # lasts; the peak is the noisiest of equals
        [4, 1, 0, 3.9],    # two lives: that of the peak counts
        [0, 0, 0, 0],      # never
    ])  # fmt: skip
    assert lives.birth.tolist() == [700, 0, 700, 0, -1]
    assert lives.peak.tolist() == [300, 0, 700, 0, -1]
    assert lives.death.tolist() == [300, 0, 0, 0, -1]
    assert lives.n_alive.tolist() == [2, 1, 4, 1, 0]
    assert lives.order.tolist() == [2, 0, 1, 3]
    assert lives.frequency[0].tolist() == [0, 0.5, 0.5, 0.5]


def test_share_and_least_number_of_rows():
    assert found([[0, 1, 4, 3]], share=0.2).death.tolist() == [100]
    assert found([[0, 1, 4, 3]], share=1.0).n_alive.tolist() == [1]
    assert found([[0, 1, 4, 3]], min_active=151).peak.tolist() == [-1]
    assert found([[0, 1, 4, 3]], min_active=150).peak.tolist() == [300]


def naive(strength, share):
    """Walk from the peak in both directions."""
    peak = max(range(4), key=lambda i: (strength[i], i))
    low = high = peak
    while low > 0 and strength[low - 1] >= share * strength[peak]:
        low -= 1
    while high < 3 and strength[high + 1] >= share * strength[peak]:
        high += 1
    return TIMES[high], TIMES[peak], TIMES[low]


CURVES = st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=6)


@given(CURVES, st.sampled_from([0.3, 0.5, 1]))
def test_any_curves_have_the_lives_of_a_walk_from_the_peak(curves, share):
    lives = found(curves, share=share)
    for i, curve in enumerate(curves):
        expected = naive(curve, share) if any(curve) else (-1, -1, -1)
        assert (lives.birth[i], lives.peak[i], lives.death[i]) == expected
    order = np.random.default_rng(0).permutation(len(curves))
    again = found(np.array(curves)[order], share=share)
    assert again.birth.tolist() == lives.birth[order].tolist()


def test_agreement_of_peaks_and_its_chance_level():
    one = found([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    other = found([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    agreement, chance, n = peak_agreement(one, other)
    assert (agreement, n) == (pytest.approx(2 / 3), 3)
    assert chance == pytest.approx(2 / 9)
    never = found([[0, 0, 0, 0]] * 4)
    assert np.isnan(peak_agreement(one, never)[0]) and peak_agreement(one, never)[2] == 0
    with pytest.raises(ConfigError):
        peak_agreement(one, found([[1, 0, 0, 0]]))


def test_bad_input():
    ones = np.ones((1, 2))
    for times in ([10], [10, 10], [20, 10]):
        with pytest.raises(ConfigError, match="ascending"):
            find_lifetimes(
                times, np.ones(len(times), dtype=int), ones[:, : len(times)].astype(int), ones[:, : len(times)]
            )
    with pytest.raises(ConfigError, match="timestep 20 has no rows"):
        find_lifetimes([10, 20], np.array([3, 0]), ones.astype(int), ones)
    for settings in ({"share": 0.0}, {"share": 1.5}, {"min_active": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            found([[1, 0, 0, 0]], **settings)
