"""AUROC and average precision from sparse codes equal those of scikit-learn on the dense matrix, with ties."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from diffprobe.analysis.certification.dictionary import areas, mid_ranks
from diffprobe.analysis.latents.rank_scores import average_precisions, class_areas
from diffprobe.core.errors import ConfigError
from tests.analysis.latents.planted_codes import collected


@pytest.fixture
def problem():
    generator = np.random.default_rng(0)
    dense = np.where(generator.random((120, 9)) < 0.3, generator.integers(1, 4, (120, 9)), 0).astype(np.float64)
    dense[:, 7] = 0
    dense[:, 8] = 1 + generator.random(120)  # never active, and always
    codes = collected(dense, [f"{i:03d}" for i in range(120)], k=9)
    return dense, codes, generator.integers(0, 3, 120)


def test_areas_are_those_of_scikit_learn(problem):
    dense, codes, labels = problem
    found = class_areas(codes, labels, 4)
    for c in range(3):
        expected = [roc_auc_score(labels == c, dense[:, j]) for j in range(9)]
        np.testing.assert_allclose(found[:, c], expected, atol=1e-12)
        np.testing.assert_allclose(found[:, c], areas(mid_ranks(dense), labels == c), atol=1e-12)
    assert np.isnan(found[:, 3]).all()
    assert (found[7, :3] == 0.5).all()


def test_average_precision_is_that_of_scikit_learn(problem):
    dense, codes, labels = problem
    classes = np.array([0, 1, 2, 0, 1, 2, -1, 1, 2])
    found = average_precisions(codes, labels, classes)
    for j, c in enumerate(classes.tolist()):
        if c < 0:
            assert np.isnan(found[j])
        else:
            assert found[j] == pytest.approx(average_precision_score(labels == c, dense[:, j]), abs=1e-12)


def test_wrong_labels_are_refused(problem):
    _, codes, labels = problem
    with pytest.raises(ConfigError, match=r"labels of shape \(5,\) for 120 images"):
        class_areas(codes, labels[:5], 3)
    with pytest.raises(ConfigError, match="labels 0..2 of 2 classes"):
        class_areas(codes, labels, 2)
