"""Features of rendered scenes."""

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.certificates.scene_features import SceneReader, brightness
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.world import load_world


def test_pixel_features_are_the_means_of_the_rendered_image() -> None:
    spec = load_world()
    scenes = sample(spec, 1, range(70))  # more than one batch
    found = SceneReader(spec, "pixels", "pixels@t0", resolution=64, noise_seed=0).read(scenes)
    images = render(spec, scenes).images.astype(np.float64) / 255
    small = images.reshape(70, 16, 4, 16, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(70, -1)
    assert found == pytest.approx(small, abs=1e-5)
    assert brightness(spec, scenes, resolution=64) == pytest.approx(images.mean(axis=(1, 2, 3)))


def test_a_condition_that_scenes_lack_is_refused() -> None:
    with pytest.raises(ConfigError, match="label"):
        SceneReader(load_world(), "pixels", "pixels@t0:label:mean", resolution=64, noise_seed=0)
