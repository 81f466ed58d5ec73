"""Settings of `eval depth` that are refused, and its cost."""

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("unit=0", "unit=0"),
        ("order_gap=0", "order_gap"),
        ("levels=false", "order_gap=8"),
        ("l2=[]", "l2="),
        ("l2=[1,1]", "l2="),
        ("labels=[64,4]", "labels"),
        ("features.pool=mean", "features.pool"),
        ("controls=[colours]", "controls"),
    ],
)
def test_settings_without_meaning_are_refused(setting: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load("scenes/depth", [setting], kinds=("evaluate_depth",))


def test_the_cost_is_known_before_the_run() -> None:
    config = load("scenes/depth", ["label_draws=1", "controls=[]", "labels=[8]"], kinds=("evaluate_depth",))
    assert config.cost_lines == ["denoiser passes of 308 images: 616", "readouts of each cell: 6"]
