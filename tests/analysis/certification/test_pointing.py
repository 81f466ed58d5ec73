"""The pointing game, on codes whose latents are at the mask or elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.pointing import PointingRules, SpatialCodes, covered_places, pointing_check
from diffprobe.core.errors import ConfigError, EmptyClass

RULES = PointingRules(n_permutations=99, n_resamples=100)
SIDE, N = 8, 120


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0 to 2, and masks of one 8 x 8 block of 64 pixels at a random place of an 8 x 8 map."""
    generator = np.random.default_rng(seed)
    places = generator.integers(SIDE * SIDE, size=n)
    masks = np.zeros((n, SIDE * SIDE), dtype=bool)
    masks[np.arange(n), places] = True
    masks = masks.reshape(n, SIDE, SIDE).repeat(8, axis=1).repeat(8, axis=2)
    return np.arange(n) % 3, masks


def planted(labels: np.ndarray, masks: np.ndarray, *, right: float = 1.0, seed: int = 0) -> SpatialCodes:
    """Latent v fires on value v alone, at the mask in a share `right` of the samples, else at a random place."""
    generator = np.random.default_rng(seed)
    n = len(labels)
    largest = np.abs(generator.normal(size=(n, 9)))
    largest[:, :3] = np.eye(3)[labels] * (1 + largest[:, :3])
    place = generator.integers(SIDE * SIDE, size=(n, 9))
    at = covered_places(masks, (SIDE, SIDE), 0).reshape(n, -1).argmax(1)
    is_right = generator.uniform(size=n) < right
    place[is_right] = at[is_right, None]
    return SpatialCodes(largest=largest, place=place)


def checked(right: float, *, seed: int = 0, shuffled: bool = False, rules: PointingRules = RULES) -> Check:
    (train, train_masks), (test, masks) = drawn(N, 10 + seed), drawn(N, 20 + seed)
    codes = planted(train, train_masks), planted(test, masks, right=right, seed=seed)
    if shuffled:
        masks = np.roll(masks, 1, axis=0)
    covered = covered_places(masks, (SIDE, SIDE), 0)
    return pointing_check(*codes, train, test, covered, rules, factor="hat", part="hat")


def test_latents_at_the_mask_pass_and_at_the_masks_of_others_fail() -> None:
    found = checked(1.0)
    assert found.value == 1 and found.passed and found.null is not None
    assert found.null["p"] == 0.01 and found.null["mean"] < 0.1
    wrong = checked(1.0, shuffled=True)
    assert wrong.value < 0.1 and not wrong.passed
    assert not checked(0.2).passed


def test_a_place_that_all_masks_share_is_no_evidence() -> None:
    """Latents that are always in the middle, and masks too: all hits, and as many with the masks of others."""
    labels, masks = drawn(N, 0)
    masks[:] = masks[:1]
    codes = planted(labels, masks)
    covered = covered_places(masks, (SIDE, SIDE), 0)
    found = pointing_check(codes, codes, labels, labels, covered, RULES, factor="hat", part="hat")
    assert found.value == 1 and found.null is not None and found.null["p"] == 1 and not found.passed


def test_a_latent_that_does_not_fire_is_a_miss() -> None:
    labels, masks = drawn(N, 0)
    codes = planted(labels, masks)
    silent = SpatialCodes(largest=np.where(np.arange(N)[:, None] % 2, codes.largest, 0.0), place=codes.place)
    covered = covered_places(masks, (SIDE, SIDE), 0)
    found = pointing_check(codes, silent, labels, labels, covered, RULES, factor="hat", part="hat")
    assert found.value == 0.5


def test_the_interval_covers() -> None:
    covered = 0
    for seed in range(150):
        interval = checked(0.7, seed=seed, rules=PointingRules(n_permutations=1, n_resamples=400)).interval
        assert interval is not None
        covered += interval[0] <= 0.7 + 0.3 / SIDE**2 <= interval[1]
    assert covered / 150 >= 0.9


def test_the_tolerance_counts_neighbours() -> None:
    mask = np.zeros((1, 64, 64), dtype=bool)
    mask[0, 0, 0] = mask[0, 40, 40] = True
    near = covered_places(mask, (8, 8), 1)[0]
    expected = np.zeros((8, 8), dtype=bool)
    expected[:2, :2] = expected[4:7, 4:7] = True
    assert np.array_equal(near, expected)
    assert covered_places(mask, (8, 8), 8).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 4), (8, 16), (1, 1)]))
def test_a_place_is_covered_if_its_block_has_a_pixel(seed: int, size: tuple[int, int]) -> None:
    masks = np.random.default_rng(seed).uniform(size=(2, 16, 16)) < 0.02
    found = covered_places(masks, size, 0)
    height, width = 16 // size[0], 16 // size[1]
    for n, row, column in np.ndindex(2, *size):
        block = masks[n, row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert found[n, row, column] == block.any()


def test_wrong_input_is_refused() -> None:
    labels, masks = drawn(6, 0)
    codes = planted(labels, masks)
    covered = covered_places(masks, (SIDE, SIDE), 0)
    with pytest.raises(ConfigError, match="7 x 8"):
        covered_places(masks, (7, 8), 0)
    with pytest.raises(ConfigError, match="tolerance -1"):
        covered_places(masks, (8, 8), -1)
    with pytest.raises(ConfigError, match="5 masks for 6"):
        pointing_check(codes, codes, labels, labels, covered[:5], RULES, factor="hat", part="hat")
    with pytest.raises(EmptyClass, match="1 of its values"):
        pointing_check(codes, codes, labels * 0, labels * 0, covered, RULES, factor="hat", part="hat")
