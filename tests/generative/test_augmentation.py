import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.generative.augmentation import AugmentationConfig


def test_the_first_view_is_the_image_and_the_others_are_the_seeds_and_keys():
    views, images = AugmentationConfig(n_views=3, shift=0.1, zoom=0.1), torch.rand(2, 3, 16, 16)
    assert views.apply(images, 0, ["a", "b"], 0) is images
    both = views.apply(images, 1, ["a", "b"], 0)
    assert torch.equal(both[1:], views.apply(images[1:], 1, ["b"], 0))
    for other in (views.apply(images, 2, ["a", "b"], 0), views.apply(images, 1, ["a", "b"], 1), images):
        assert not torch.allclose(both, other, atol=1e-2)
    assert both.min() >= 0 and both.max() <= 1


def test_a_view_moves_and_scales_no_further_than_asked():
    images = torch.ones(50, 3, 40, 40)
    images[:, :, 10:30, 10:30] = 0  # a square of 20 x 20 in the middle
    seen = AugmentationConfig(n_views=2, shift=0.1, zoom=0.2).apply(images, 1, [str(i) for i in range(50)], 0)
    dark = seen[:, 0] < 0.5
    rows = torch.arange(40.0)
    centre = torch.stack(
        [(dark.any(2) * rows).sum(1) / dark.any(2).sum(1), (dark.any(1) * rows).sum(1) / dark.any(1).sum(1)]
    )
    assert (centre - 19.5).abs().max() <= 0.1 * 40 * 1.25 + 1 and (centre - 19.5).abs().max() > 2
    sizes = dark.any(2).sum(1).float()
    assert 16 - 1 <= sizes.min() < 18 and 22 < sizes.max() <= 24 + 1
    assert seen[:, :, 0, 0].min() > 1 - 1e-5  # what comes in from outside is the border


def test_half_of_the_samples_see_the_image_itself():
    drawn = AugmentationConfig(n_views=5, p_original=0.5).choose(4000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert shares.tolist() == pytest.approx([0.5] + [0.125] * 4, abs=0.03)
    assert AugmentationConfig(n_views=1, p_original=0.0).choose(5, torch.Generator()).tolist() == [0] * 5


@pytest.mark.parametrize(("key", "value"), [("n_views", 0), ("p_original", 1.5), ("shift", -0.1), ("zoom", 1.0)])
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        AugmentationConfig(**{key: value})
