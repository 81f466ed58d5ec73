"""Settings of massive channels: ranges, and settings without effect."""

import pytest

from diffprobe.config.massive import MassiveConfig
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError


def test_the_default_looks_for_nothing() -> None:
    assert MassiveConfig(treatment="drop").finds and not MassiveConfig(treatment="drop", channels_of="store").finds
    assert (
        not MassiveConfig().finds
        and not MassiveConfig().active
        and MassiveConfig(treatment="drop", ratio=30, images=5).active
    )


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"treatment": "drop", "ratio": 1}, "ratio=1"),
        ({"treatment": "drop", "images": 0}, "images=0"),
        ({"ratio": 30}, "ratio"),
        ({"images": 8}, "images"),
        ({"treatment": "zero"}, "drop"),
        ({"channels_of": "store"}, "channels_of"),
        ({"treatment": "drop", "channels_of": "store", "images": 8}, "images"),
        ({"treatment": "drop", "channels_of": "store", "ratio": 30}, "ratio"),
    ],
)
def test_what_has_no_effect_or_is_out_of_range_is_refused(tree: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(MassiveConfig, tree, at="features.massive")
    assert named in str(refused.value)
