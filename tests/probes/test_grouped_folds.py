"""Grouped folds: whole groups, balanced classes, independent of order; what is impossible is refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak
from diffprobe.probes.grouped_folds import grouped_folds, require_disjoint, unlabelled_folds


def _data(n_groups: int = 120) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 9, n_groups)
    groups = [f"family{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = np.array(
        [(i % 4) if i % 3 else int(random.integers(4)) for i, size in enumerate(sizes) for _ in [0] * size]
    )
    return groups, labels


def test_groups_stay_whole_and_classes_are_as_even_as_scikit_learn_makes_them() -> None:
    groups, labels = _data()
    fold = grouped_folds(groups, labels, n_folds=5).fold
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))

    def unevenness(folds: np.ndarray) -> float:
        counts = np.array([np.bincount(labels[folds == k], minlength=4) for k in range(5)])
        return float((counts / counts.sum(0)).std(0).mean())

    theirs = np.empty_like(fold)
    split = StratifiedGroupKFold(5).split(np.zeros((len(labels), 1)), labels, groups)
    for k, (_, held_out) in enumerate(split):
        theirs[held_out] = k
    assert unevenness(fold) <= unevenness(theirs) + 0.01


def test_the_order_of_samples_does_not_matter_and_the_seed_does() -> None:
    groups, labels = _data()
    order = np.random.default_rng(1).permutation(len(labels))
    first = grouped_folds(groups, labels, n_folds=4).fold
    again = grouped_folds([groups[i] for i in order], labels[order], n_folds=4).fold
    assert (first[order] == again).all()
    assert (grouped_folds(groups, labels, n_folds=4, seed=1).fold != first).any()


def test_samples_without_a_label_are_in_no_fold() -> None:
    found = grouped_folds(list("abcdef"), np.array([0, 1, -1, 1, 2, 2]), n_folds=2)
    assert found.fold[2] == -1 and found.n_groups == 5
    assert found.single_group_classes == (0,)


def test_fewer_groups_than_folds_are_refused_with_the_number_that_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"2 groups for 5 folds[\s\S]*'a', 'b'[\s\S]*folds=2"):
        grouped_folds(["a", "a", "b"], np.array([0, 1, 0]), n_folds=5)


def test_a_target_that_is_constant_within_a_fold_is_refused() -> None:
    with pytest.raises(EmptyClass, match=r"constant[\s\S]*class 0"):
        grouped_folds(["a", "b", "b", "c"], np.array([0, 1, 0, 0]), n_folds=3)


@pytest.mark.parametrize(
    ("labels", "folds", "error"), [([0, 0, -1], 2, EmptyClass), ([0, 1], 2, ConfigError), ([0, 1, 0], 1, ConfigError)]
)
def test_unusable_input_is_refused(labels: list[int], folds: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        grouped_folds(["a", "b", "c"], np.array(labels), n_folds=folds)


def test_a_group_that_spans_splits_is_refused() -> None:
    require_disjoint({"train": ["a", "b"], "test": ["c"]})
    with pytest.raises(SplitLeak, match=r"1 groups[\s\S]*'train'[\s\S]*'test'[\s\S]*'b'[\s\S]*1 of 2"):
        require_disjoint({"train": ["a", "b"], "test": ["b", "c"]})


@given(st.lists(st.integers(0, 8), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 3))
def test_folds_without_labels_keep_groups_whole_and_sizes_alike(numbers, n_folds, seed):
    groups = [f"g{number}" for number in numbers]
    if len(set(groups)) < n_folds:
        with pytest.raises(ConfigError, match=f"{len(set(groups))} groups for {n_folds}"):
            unlabelled_folds(groups, n_folds=n_folds, seed=seed)
        return
    found = unlabelled_folds(groups, n_folds=n_folds, seed=seed)
    of_group = {group: {int(k) for k, other in zip(found, groups, strict=True) if other == group} for group in groups}
    assert all(len(folds) == 1 for folds in of_group.values())
    sizes = np.bincount(found, minlength=n_folds)
    assert sizes.min() > 0 and sizes.max() - sizes.min() <= max(groups.count(group) for group in groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    shuffled = unlabelled_folds([groups[i] for i in order], n_folds=n_folds, seed=seed)
    assert (shuffled == found[order]).all()


def test_one_fold_is_refused_without_labels():
    with pytest.raises(ConfigError, match="folds=1"):
        unlabelled_folds(["a", "b"], n_folds=1)
