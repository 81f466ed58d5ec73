"""The rules by which components are sorted."""

import numpy as np
import pytest

from diffprobe.analysis.discovery.findings import Rules, is_structured
from diffprobe.analysis.discovery.two_groups import two_groups
from diffprobe.core.errors import ConfigError


def test_structure_needs_stability_and_groups_or_a_tail():
    generator = np.random.default_rng(0)
    x = generator.normal(size=500) + 6 * (generator.random(500) < 0.2)
    apart, normal = two_groups(np.column_stack([x, generator.normal(size=500)]))
    rules = Rules()
    assert is_structured(0.95, apart, 0.0, rules) and not is_structured(0.5, apart, 0.0, rules)
    assert is_structured(0.95, normal, 8.0, rules) and not is_structured(0.95, normal, 0.1, rules)


@pytest.mark.parametrize(
    "wrong", [{"least_stability": 1.5}, {"identity_share": -0.1}, {"fdr": 0.0}, {"least_effect": -1.0}]
)
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Rules(**wrong)
