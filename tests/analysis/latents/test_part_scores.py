"""Mask IoU and pointing game: against plain references, on planted parts, and with nothing to find."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.part_scores import part_scores
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.analysis.latents.place_codes import PlaceCollector
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

SIDE = 4
SETTINGS = PermutationSettings(most=99)


def planted(n, seed, *, shuffled=False):
    """Masks of a 2 x 2 block anywhere and of the rest; latent 0 fires on the block, 1 on the rest, 2 in the middle of
    the map, 3 at random, 4 never."""
    rng = np.random.default_rng(seed)
    block = np.zeros((n, SIDE, SIDE), bool)
    for i in range(n):
        top, left = rng.integers(0, SIDE - 1, 2)
        block[i, top : top + 2, left : left + 2] = True
    block = block.reshape(n, -1)
    masks = np.stack([block, ~block])
    values = np.zeros((n, SIDE * SIDE, 5))
    values[..., 0] = np.where(block, 2 + rng.random(block.shape), (rng.random(block.shape) < 0.2) * 0.3)
    values[..., 1] = np.where(~block, 1 + rng.random(block.shape), 0)
    values[:, [5, 6, 9, 10], 2] = 1 + rng.random((n, 4))
    values[..., 3] = (rng.random(block.shape) < 0.3) * rng.random(block.shape)
    if shuffled:
        masks = masks[:, rng.permutation(n)]
    collector = PlaceCollector(5, SIDE * SIDE)
    indices = torch.arange(5).expand(n, SIDE * SIDE, 5)
    collector.update(torch.from_numpy(values), indices, [f"{i:04d}" for i in range(n)])
    return collector.result(), masks, values


def scores(seed=0, groups=None, n=80, **settings):
    train, train_masks, _ = planted(n, seed, **settings)
    test, test_masks, values = planted(n, seed + 1000, **settings)
    groups = groups or Groups.of(list(range(n)), at_least=1)
    return part_scores(train, train_masks, test, test_masks, groups, SETTINGS), test_masks, values


def test_planted_parts_are_found_and_scores_are_those_of_a_plain_reference():
    found, masks, values = scores()
    assert found.part[:2].tolist() == [0, 1] and found.part[4] == -1 and np.isnan(found.iou[4])
    assert (found.iou[:2] > 0.85).all()  # the threshold leaves the weak activations out
    assert found.pointing[:2].tolist() == [1.0, 1.0]
    assert (found.iou_q[:2] < 1e-3).all() and (found.pointing_q[:2] < 1e-3).all()
    assert found.iou_p[2] > 0.05 or found.iou[2] - found.chance_iou[2] < 0.05
    assert found.iou_p[3] > 0.01
    for latent in range(4):
        of_part, activation = masks[found.part[latent]], values[..., latent]
        above = activation >= found.threshold[latent]
        assert found.iou[latent] == pytest.approx((above & of_part).sum() / (above | of_part).sum())
        active = above.any(1)
        on_part = of_part[np.arange(len(of_part)), activation.argmax(1)]
        assert found.pointing[latent] == pytest.approx(on_part[active].mean())
        expected = of_part.mean(0)[np.nonzero(above)[1]].sum()
        assert found.chance_iou[latent] == pytest.approx(expected / (above.sum() + of_part.sum() - expected))


def test_masks_of_other_images_find_nothing():
    small = []
    for seed in range(8):
        found, _, _ = scores(seed, shuffled=True)
        small += [*found.iou_p[:4], *found.pointing_p[:4]]
    small = np.array(small)
    small = small[~np.isnan(small)]
    assert (small < 0.05).mean() <= 0.2 and small.min() > 1e-4


def test_images_of_one_group_are_not_independent():
    """80 images in two groups: no p below that of an exchange of the two."""
    found, _, _ = scores(groups=Groups.of([i // 40 for i in range(80)]))
    assert found.iou_p[0] > 0.1
    alone, _, _ = scores(groups=Groups.of([0] * 80, at_least=1))
    assert np.isnan(alone.iou_p).all() and alone.iou[0] > 0.85


def test_a_latent_that_is_active_on_few_training_images_has_no_part():
    train, train_masks, _ = planted(4, 0)
    test, test_masks, _ = planted(20, 1)
    groups = Groups.of(list(range(20)))
    found = part_scores(train, train_masks, test, test_masks, groups, SETTINGS)
    assert (found.part == -1).all() and np.isnan(found.iou).all()


def test_masks_of_other_images_or_places_are_refused():
    train, masks, _ = planted(20, 0)
    groups = Groups.of(list(range(20)))
    with pytest.raises(ConfigError, match=r"'test'"):
        part_scores(train, masks, train, masks[:, :5], groups)
    with pytest.raises(ConfigError, match="2 parts in train and 1"):
        part_scores(train, masks, train, masks[:1], groups)
