"""Settings of probe=linear_cv, and its head before it is solved. What it learns: tests/training/test_linear_cv.py."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.linear_cv import Config, make


def test_the_head_starts_at_zero() -> None:
    head = make(Config(), 3, 2, seed=0)
    assert head.weight.shape == (2, 3) and not head.weight.any() and not head.bias.any()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="folds=1"):
        Config(folds=1)
    with pytest.raises(ConfigError, match="l2="):
        Config(l2=(0.1, 0.1))
    with pytest.raises(ConfigError, match="controls"):
        Config(controls=("other",))
