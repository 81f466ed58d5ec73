"""Differences from controls and p, and when an entry passes them."""

import pytest

from diffprobe.report.entry_tests import Difference, EntryTests, NullTest


def difference(low: float, high: float, control: str = "pixels") -> Difference:
    middle = (low + high) / 2
    return Difference(control=control, value=middle, low=low, high=high, n_groups=9, unit="values of 'family'")


@pytest.mark.parametrize(("low", "high", "up", "down"), [(0.1, 0.3, True, False), (-0.3, -0.1, False, True)])
def test_zero_is_excluded_on_the_better_side_alone(low, high, up, down):
    found = difference(low, high)
    assert found.excludes_zero(higher_is_better=True) is up and found.excludes_zero(higher_is_better=False) is down
    assert found.gain(higher_is_better=True) == -found.gain(higher_is_better=False)


def test_the_strongest_control_decides():
    weak, strong = difference(0.4, 0.6, "pixels"), difference(-0.1, 0.3, "vae")
    assert EntryTests(differences=(weak, strong)).strongest(higher_is_better=True) == strong
    assert EntryTests(differences=(weak, strong)).strongest(higher_is_better=False) == weak
    assert not EntryTests(differences=(weak, strong)).passes(higher_is_better=True, rate=0.05)
    assert EntryTests(differences=(weak,)).passes(higher_is_better=True, rate=0.05)
    assert EntryTests().strongest(higher_is_better=True) is None


@pytest.mark.parametrize(("adjusted", "passes"), [(0.05, True), (0.06, False)])
def test_p_has_to_be_at_most_the_rate_after_adjustment(adjusted, passes):
    null = NullTest(p=0.01, smallest_p=0.001, quantile=0.99, of="permuted labels", p_adjusted=adjusted, n_tests=6)
    assert EntryTests(null=null).passes(higher_is_better=True, rate=0.05) is passes
    assert EntryTests(null=null, differences=(difference(-1, 1),)).passes(higher_is_better=True, rate=0.05) is False
