"""Settings of the explorer."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.explore_settings import ExploreConfig


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [({"n_top": 0}, "n_top"), ({"n_match_images": 1}, "n_match_images"), ({"seeds": ("a", "a")}, "a"),
     ({"device": "abacus"}, "abacus"), ({"processes": 0}, "processes"), ({"columns": ("a", "a")}, "columns has"),
     ({"numbers": False, "encoder": "pixels"}, "numbers=false"),
     ({"encoder": "none", "n_embedded": 9}, "encoder=none")],
)  # fmt: skip
def test_values_out_of_range_are_refused(settings, pattern):
    with pytest.raises(ConfigError, match=pattern):
        ExploreConfig(**settings)
