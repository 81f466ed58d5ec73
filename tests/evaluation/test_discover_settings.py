"""Settings of `diffprobe discover`."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.discover_settings import DiscoverConfig


def test_settings_reach_the_analysis():
    search = DiscoverConfig(cell="a", max_components=5, fdr=0.1, n_permutations=99, max_words=1, seed=3).search
    assert (search.decomposition.max_components, search.rules.fdr, search.n_permutations) == (5, 0.1, 99)
    assert (search.max_words, search.seed, search.decomposition.seed) == (1, 3, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"cell": ""}, {"fdr": 0.0}, {"n_permutations": 5}, {"n_examples": 0}, {"explained": 2.0}, {"level": 0.0},
     {"max_components": 0}, {"seed": -1}, {"identity_share": 2.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DiscoverConfig(**{"cell": "a", **wrong})
