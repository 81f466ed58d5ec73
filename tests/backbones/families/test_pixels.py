import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.errors import BadTimestep, ConfigError, UnknownTap

CELL = "pixels@t0:empty:mean"


def load(**settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["pixels"], "timesteps": [0], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained("pixels", **chosen)  # type: ignore[arg-type]


def test_features_are_the_image_shrunk_by_area() -> None:
    images = torch.rand(2, 3, 64, 64)
    features = load()
    assert features.resolution == 64 and features.widths == {CELL: 768}
    expected = images.reshape(2, 3, 16, 4, 16, 4).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(features(images, keys=["a", "b"])[CELL], expected)


@pytest.mark.parametrize(
    "settings", [{"pool": "max"}, {"draws": 3, "seed": 9}, {"dtype": "float32", "max_rows_per_pass": 1}]
)
def test_neither_pooling_nor_noise_changes_them(settings: dict[str, object]) -> None:
    images = torch.rand(3, 3, 64, 64)
    plain = load()(images, keys=["a", "b", "c"])[CELL]
    (other,) = load(**settings)(images, keys=["a", "b", "c"]).values()
    torch.testing.assert_close(other, plain)


def test_other_sizes_are_shrunk_as_well() -> None:
    assert load(resolution=40)(torch.rand(1, 3, 40, 40), keys=["a"])[CELL].shape == (1, 768)
    with pytest.raises(ConfigError, match="8 .* 16 px"):
        load(resolution=8)


def test_what_a_picture_cannot_be_asked_is_refused() -> None:
    with pytest.raises(BadTimestep, match="only 0"):
        load(timesteps=[100])
    with pytest.raises(ConfigError, match="allowed: empty"):
        load(condition="caption")
    with pytest.raises(ConfigError, match="random_weights"):
        load(random_weights=True)
    with pytest.raises(UnknownTap, match="pixels"):
        load(taps=["mid_block"])
