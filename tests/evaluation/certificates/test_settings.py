"""Settings of all kinds of certificates."""

import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"alpha": 0.0}, {"n_resamples": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        WorldSettings(**wrong)  # type: ignore[arg-type]


def test_an_unknown_world_is_refused() -> None:
    with pytest.raises(UnknownName, match="plantd"):
        WorldSettings(world="plantd").load_world()
    assert WorldSettings(world="permuted").load_world().world("permuted") == 1


def test_shares_are_within_0_and_1() -> None:
    in_unit_range(a=0.0, b=1.0)
    with pytest.raises(ConfigError, match="b=1.5"):
        in_unit_range(a=0.0, b=1.5)
