import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.generative.rendered_scenes import DEPENDENT, RenderedScenes, RenderedScenesConfig, uniform_scenes
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.splits import splits_of
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


def test_texture_colour_and_background_do_not_depend_on_the_role():
    indices = np.arange(24_000)
    scenes, planted = uniform_scenes(SPEC, 0, indices), sample(SPEC, 0, indices)
    roles = scenes.factors["role"]
    striped = np.array([scenes.factors["texture"][roles == code].mean() for code in range(24)])
    assert np.abs(striped - 0.5).max() < 4 * np.sqrt(0.25 / 1000)
    rates = np.array([planted.factors["texture"][roles == code].mean() for code in range(24)])
    assert np.abs(rates - 0.5).max() > 0.4  # the world's own are far from even
    for name, codes in planted.factors.items():
        assert np.array_equal(codes, scenes.factors[name]) is (name not in DEPENDENT)


def test_scenes_are_those_of_train_and_val():
    source = RenderedScenes(RenderedScenesConfig(n_train=64, n_val=16, batch_size=16), seed=0)
    assert set(splits_of(SPEC, sample(SPEC, 0, source.train))) == {"train"}
    assert set(splits_of(SPEC, sample(SPEC, 0, source.val))) == {"val"}
    batches = [rows.tolist() for rows in source.train_dataloader()]
    assert sorted(sum(batches, [])) == list(range(64)) and len(batches) == 4
    assert sum(len(rows) for rows in source.val_dataloader()) == 16


@pytest.mark.parametrize(
    ("settings", "fact"), [({"resolution": 48}, "48"), ({"n_train": 8}, "n_train=8"), ({"n_val": 0}, "n_val=0")]
)
def test_wrong_settings_are_refused(settings, fact):
    with pytest.raises(ConfigError, match=fact):
        RenderedScenesConfig(**settings)
