"""Settings of `eval segmentation` that are refused."""

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("labels=[16,4]", "labels"),
        ("labels=[1]", "labels"),
        ("pool=10", "pool=10"),
        ("l2=0", "l2=0"),
        ("features.pool=mean", "features.pool"),
        ("data.limit=10", "data.limit"),
        ("controls=[pixels,pixels]", "controls"),
    ],
)
def test_settings_without_meaning_are_refused(setting: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load("scenes/segmentation", [setting], kinds=("evaluate_segmentation",))


def test_the_cost_counts_both_denoisers() -> None:
    config = load("scenes/segmentation", [], kinds=("evaluate_segmentation",))
    images = 64 + config.n_val + config.n_test
    assert config.cost_lines[0] == f"denoiser passes of {images} images: {2 * images}"
    assert len(config.cost_lines) == 2
