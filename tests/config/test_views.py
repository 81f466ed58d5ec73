"""Settings of views: ranges, and settings that would change nothing."""

from typing import Any

import pytest

from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import FeaturesConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError

CELLS = {"taps": ["mid_block"], "timesteps": [10]}


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"flip": 1.5}, ["flip=1.5", "0 to 1"]),
        ({"flip": -0.1}, ["flip=-0.1"]),
        ({"padding": -1}, ["padding=-1"]),
        ({"n": 0, "flip": 0.5}, ["n=0", "at least 1"]),
        ({"n": 3}, ["n", "flip, padding, crop_area, redraw_noise"]),
        ({"use": "all"}, ["use", "flip, padding"]),
        ({"use": "all", "flip": 0.5}, ["use=all", "n is missing"]),
        ({"padding_mode": "edge", "flip": 0.5}, ["padding_mode=edge", "padding"]),
        ({"crop_aspect": [1.0, 1.0], "flip": 0.5}, ["crop_aspect", "crop_area"]),
        ({"crop_area": [0.8, 1.0], "padding": 4}, ["crop_area", "padding=4"]),
        ({"crop_area": [0.0, 1.0]}, ["crop_area=[0.0, 1.0]"]),
        ({"crop_area": [0.9, 0.8]}, ["crop_area=[0.9, 0.8]"]),
        ({"crop_area": [0.5, 1.1]}, ["crop_area=[0.5, 1.1]"]),
        ({"crop_area": [0.5, 1.0], "crop_aspect": [0.0, 1.0]}, ["crop_aspect=[0.0, 1.0]"]),
        ({"crop_area": [0.4, 0.5], "crop_aspect": [3.0, 4.0]}, ["crop_aspect=[3.0, 4.0]", "0.5 and 2"]),
    ],
)
def test_a_setting_out_of_range_or_without_effect_is_refused(settings: Any, facts: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ViewsConfig, settings)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


@pytest.mark.parametrize(
    ("features", "facts"),
    [
        ({"source": "stored", "views": {"flip": 0.5}}, ["views.n", "source=live"]),
        ({"source": "live", "views": {"flip": 0.5, "n": 2, "use": "all"}}, ["views.use=all", "source=stored"]),
    ],
)
def test_a_number_of_views_belongs_to_a_store(features: Any, facts: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(FeaturesConfig, {**CELLS, **features})
    assert all(fact in str(caught.value) for fact in facts)


def test_without_settings_there_are_no_views() -> None:
    assert not ViewsConfig().active and ViewsConfig().content() == {} and ViewsConfig().per_epoch == 1
    assert to_tree(FeaturesConfig(taps=("mid_block",), timesteps=(1,)))["views"] == to_tree(ViewsConfig())


def test_what_fixes_a_view_leaves_out_how_views_are_chosen() -> None:
    crop = ViewsConfig(crop_area=(0.8, 1.0), flip=0.5, n=3, use="all")
    assert crop.content() == {"crop_area": (0.8, 1.0), "flip": 0.5} and crop.per_epoch == 3
    assert not ViewsConfig(redraw_noise=True).changes_images and ViewsConfig(redraw_noise=True).active
    assert [ViewsConfig(flip=0.5).of_epoch(epoch) for epoch in (0, 7)] == [0, 7]
