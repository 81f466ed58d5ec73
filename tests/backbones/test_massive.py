"""Massive channels: found where they were planted, at any scale, and treated alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.backbones.massive import channel_limit, massive_channels, treat_massive
from diffprobe.core.errors import ConfigError


def planted(factor: float = 100.0) -> torch.Tensor:
    maps = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[:, [5, 17]] *= factor
    return maps


def test_planted_channels_are_found_and_those_below_the_ratio_are_not() -> None:
    found = massive_channels(planted(), ratio=20)
    assert list(found) == [5, 17] and all(70 < value < 130 for value in found.values())
    assert massive_channels(planted(), ratio=150) == {} == massive_channels(planted(1.0))
    assert massive_channels(torch.zeros(1, 4, 2, 2)) == {}


@given(st.floats(1e-3, 1e3))
def test_the_rule_does_not_depend_on_the_scale(scale: float) -> None:
    assert list(massive_channels(planted() * scale)) == [5, 17]


def test_they_are_dropped_or_clipped_and_nothing_else_changes() -> None:
    maps = planted()
    limit = channel_limit(maps, ratio=20)
    others = [channel for channel in range(32) if channel not in (5, 17)]
    dropped = treat_massive(maps, [5, 17], "drop", limit=limit)
    clipped = treat_massive(maps, [5, 17], "clip", limit=limit)
    assert not dropped[:, [5, 17]].any() and float(clipped[:, [5, 17]].abs().max()) == pytest.approx(limit)
    for found in (dropped, clipped):
        assert torch.equal(found[:, others], maps[:, others])
    assert treat_massive(maps, [5, 17], "keep", limit=limit) is maps
    assert float(maps[:, 5].abs().max()) > limit  # the input is left as it was


def test_a_ratio_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="1"):
        massive_channels(planted(), ratio=1.0)
