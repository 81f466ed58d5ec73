"""Components against the planted factors of rendered scenes, by the shipped reader."""

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.discover_reader import likest_factors
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.world import SHIPPED, load_world


def test_a_component_that_is_a_background_is_recognised():
    spec = load_world(SHIPPED)
    scenes = sample(spec, 7, range(120), world="planted")
    images = render(spec, scenes, resolution=64).images
    slanted = scenes.factors["background"] == spec.names("background").index("slanted")
    noise = np.random.default_rng(0).normal(size=(len(images), 2)) * 0.1
    own, random = likest_factors(np.column_stack([-1.0 * slanted + noise[:, 0], noise[:, 1]]), images, "scenes-reader")
    assert (own.factor, own.value, own.is_positive) == ("background", "slanted", False) and own.auroc > 0.98
    assert set(own.planted) == {"sailor", "miner"} and random.auroc < 0.85
    with pytest.raises(ConfigError, match="scenes-reader"):
        likest_factors(noise[:12], images[:12], "scenes-reader")
