"""What a discovery reads of a store."""

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, TooFewGroups, UnknownName
from diffprobe.evaluation.discover_inputs import read_samples
from diffprobe.evaluation.discover_settings import DiscoverConfig
from tests.evaluation.discover_stores import CELL, SIDE, image_store, prompt_store


def test_prompts_have_blocks_and_images_of_their_own(tmp_path):
    store = prompt_store(tmp_path)
    by_role = read_samples(store, DiscoverConfig(cell="mid_block@t100", subject="role"))
    assert by_role.cell == CELL and by_role.features.shape == (480, 6) and by_role.n_without_subject == 0
    assert by_role.design.names == tuple(f"role{i}" for i in range(6))
    assert by_role.design.blocks is not None and by_role.design.blocks[:2] == ("0", "1")
    assert by_role.images is not None
    (image,) = by_role.images([3])
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and image[0, 0, 0] in (51, 204)
    by_prompt = read_samples(store, DiscoverConfig(cell=CELL))
    assert by_prompt.subject_by == "prompt" and by_prompt.design.names[0] == "a role0"


def test_images_have_labels_and_no_blocks(tmp_path):
    samples = read_samples(image_store(tmp_path), DiscoverConfig(cell=CELL))
    assert samples.n_without_subject == 1 and len(samples.features) == len(samples.captions) == 479
    assert samples.design.blocks is None and samples.images is None and samples.image_digest is None


@pytest.mark.parametrize(
    ("settings", "error", "fact"),
    [
        ({"cell": "mid_blok@t100"}, UnknownName, "mid_block"),
        ({"subject": "roel"}, UnknownName, "role"),
        ({"subject": "seed"}, UnknownName, "seed"),
        ({"split": "tset"}, UnknownName, "train"),
        ({"images": "somewhere"}, ConfigError, "images=somewhere"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, error, fact):
    with pytest.raises(error, match=fact):
        read_samples(prompt_store(tmp_path), DiscoverConfig(**{"cell": CELL, **settings}))


def test_one_subject_and_too_few_seeds_are_refused(tmp_path):
    with pytest.raises(TooFewGroups, match="1 subject"):
        read_samples(image_store(tmp_path / "one"), DiscoverConfig(cell=CELL, subject="style"))
    with pytest.raises(TooFewGroups, match="with 2"):
        read_samples(prompt_store(tmp_path / "two", n_seeds=2), DiscoverConfig(cell=CELL))
