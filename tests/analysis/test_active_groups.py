"""Chance draws groups: as many as a latent is active on, with as many samples in each."""

import numpy as np
import pytest

from diffprobe.analysis.active_groups import ActiveGroups
from diffprobe.core.errors import ConfigError, EmptyClass

GROUP = np.repeat(np.arange(6), [1, 2, 3, 3, 4, 4])
LABEL = GROUP % 3


def active_on(samples, label=LABEL, group=GROUP, parts=((0, 9), (9, 17)), n_classes=3):
    """Return a latent's groups, seen in two batches beside another latent that is active on all samples."""
    found = ActiveGroups([5], n_classes)
    for start, end in parts:
        own = np.array([i - start for i in samples if start <= i < end], dtype=np.int64)
        others = np.arange(end - start)
        latents = np.concatenate([np.full(len(own), 5), np.full(len(others), 7)])
        found.update(latents, np.concatenate([own, others]), label[start:end], group[start:end])
    return found


def draws(found, n=300):
    return found.draw(5, n, np.random.default_rng(0))


def test_a_whole_group_is_replaced_by_groups_that_are_large_enough():
    found = active_on(range(13, 17))  # the last group, of label 2
    assert found.counts(5).tolist() == [4]
    drawn = draws(found)
    assert {tuple(row) for row in drawn.tolist()} == {(0, 4, 0), (0, 0, 4)}  # both groups of four
    assert abs((drawn[:, 1] > 0).mean() - 0.5) < 0.1


def test_all_assignments_to_different_groups_are_equally_likely():
    found = active_on([13, 14, 16, 3, 4, 0], label=GROUP, n_classes=6)  # 3 of one group, 2 of another, 1 of a third
    assert found.counts(5).tolist() == [3, 2, 1]
    assigned, times = np.unique(draws(found, 2000), axis=0, return_counts=True)
    assert (np.sort(assigned, axis=1) == [0, 0, 0, 1, 2, 3]).all()
    assert (assigned[:, :2] <= [1, 2]).all() and len(assigned) == 4 * 4 * 4
    assert times.max() < 3 * times.mean() and times.min() > times.mean() / 3


def test_labels_inside_a_group_are_drawn_without_replacement():
    label = np.arange(17) % 3
    rows = draws(active_on([13, 14, 15], label=label), 200)
    assert (rows.sum(1) == 3).all()
    of_groups = [np.bincount(label[group == GROUP], minlength=3) for group in range(2, 6)]
    assert all(any((row <= available).all() for available in of_groups) for row in rows)
    assert len({tuple(row) for row in rows.tolist()}) > 1


def test_samples_without_group_or_label_are_alone_or_left_out():
    group, label = np.where(GROUP == 5, -1, GROUP), np.where(GROUP == 4, -1, LABEL)
    found = active_on(range(9, 17), label=label, group=group)
    assert found.counts(5).tolist() == [1, 1, 1, 1]
    assert (draws(found, 20).sum(1) == 4).all()


def test_single_samples_are_drawn_as_without_groups():
    alone = draws(active_on(range(6), group=np.full(17, -1)), 4000)
    expected = np.random.default_rng(1).multivariate_hypergeometric(np.bincount(LABEL), 6, size=4000)
    assert alone.mean(0) == pytest.approx(expected.mean(0), abs=0.06)
    assert alone.std(0) == pytest.approx(expected.std(0), abs=0.06)


def test_what_cannot_be_drawn_is_named(no_shape_checks):
    with pytest.raises(EmptyClass, match="latent 5.*of 17"):
        draws(active_on([]))
    with pytest.raises(ConfigError, match="latent 6.*1 whose groups"):
        active_on([1]).counts(6)
    with pytest.raises(ConfigError, match="16 groups for 17 samples"):
        ActiveGroups([5], 3).update(np.array([5]), np.array([0]), LABEL, GROUP[:-1])
