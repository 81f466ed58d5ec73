"""Clusters of subjects."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from diffprobe.analysis.audit.clusters import cluster_subjects
from diffprobe.core.errors import ConfigError

RNG = np.random.default_rng(0)
CENTRES = np.eye(8)[:3] * 6
SUBJECTS = np.concatenate([CENTRES[i] + RNG.normal(size=(n, 8)) for i, n in enumerate((4, 7, 5))])
WORDS = ["first", "second", "third"]


def test_planted_clusters_are_found_and_named() -> None:
    found = cluster_subjects(SUBJECTS, CENTRES, WORDS, n_words=1)
    assert [one.subjects for one in found.clusters] == [tuple(range(4, 11)), tuple(range(11, 16)), tuple(range(4))]
    assert [one.words for one in found.clusters] == [("second",), ("third",), ("first",)]
    assert max(found.tried, key=lambda k: found.tried[k]) == 3 and set(found.tried) == set(range(2, 9))
    labels = [0] * 4 + [1] * 7 + [2] * 5
    rows = SUBJECTS / np.linalg.norm(SUBJECTS, axis=1, keepdims=True)
    assert found.silhouette == pytest.approx(silhouette_score(rows, labels))


def test_the_order_of_subjects_does_not_matter() -> None:
    order = RNG.permutation(16)
    found = cluster_subjects(SUBJECTS[order], CENTRES, WORDS)
    sets = {frozenset(int(order[i]) for i in one.subjects) for one in found.clusters}
    assert sets == {frozenset(range(4)), frozenset(range(4, 11)), frozenset(range(11, 16))}


def test_clusters_without_words_have_no_names() -> None:
    assert all(one.words == () for one in cluster_subjects(SUBJECTS, np.zeros((0, 8)), []).clusters)


def test_few_subjects_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 subjects"):
        cluster_subjects(SUBJECTS[:3], CENTRES, WORDS)
