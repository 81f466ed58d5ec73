"""Settings that segmentation and depth share: what is refused, and the cost."""

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError

KINDS = {"scenes/segmentation": "evaluate_segmentation", "scenes/depth": "evaluate_depth"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("n_val=1", "n_val"),
        ("labels=[]", "labels"),
        ("labels=[1]", "labels"),
        ("pool=10", "pool=10"),
        ("pool=64 labels=[64]", "label_draws=3"),
        ("features.keep_draws=true features.draws=2", "keep_draws"),
        ("data.limit=10", "data.limit"),
        ("controls=[pixels,pixels]", "controls"),
    ],
)
def test_settings_without_meaning_are_refused(name: str, setting: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load(name, setting.split(), kinds=(KINDS[name],))


def test_no_more_images_are_read_than_there_are() -> None:
    config = load("scenes/depth", ["pool=100", "controls=[shuffled_truth]"], kinds=("evaluate_depth",))
    assert config.cost_lines[0] == "denoiser passes of at most 400 images: 800"  # 100 of train, 100 of val, 200 of test
    assert config.cost_lines[1] == "of the cells again, for shuffled_truth: 800 more"
