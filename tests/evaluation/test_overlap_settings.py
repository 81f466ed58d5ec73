import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.overlap_settings import OverlapRule, check_overlap


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="images=0"):
        OverlapRule(n_permutations=5)
    with pytest.raises(ConfigError, match="cell"):
        OverlapRule(images=2, cell="x")
    with pytest.raises(ConfigError, match="images=-1"):
        OverlapRule(images=-1)
    with pytest.raises(ConfigError, match="kind=captions"):
        check_overlap(OverlapRule(images=2), "captions")
    check_overlap(OverlapRule(images=2), "classes")
    check_overlap(OverlapRule(), "captions")
