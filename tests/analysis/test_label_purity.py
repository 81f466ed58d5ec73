"""Purity, entropy and AUROC against plain definitions, and their indifference to the class numbering."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from diffprobe.analysis.label_purity import (
    OneVersusRest,
    expected_entropy,
    expected_largest_share,
    normalised_entropy,
    purity,
    top_classes,
)
from diffprobe.core.errors import ConfigError

N_CLASSES = 6


@pytest.fixture
def labels():
    """Classes of the top images of 30 latents, some with fewer than 8 images."""
    generator = np.random.default_rng(1)
    found = generator.integers(0, N_CLASSES, (30, 8))
    found[np.arange(8) >= generator.integers(0, 9, 30)[:, None]] = -1
    return found


def ref_measures(row):
    """Return class, purity and normalised entropy of one latent, from counts."""
    ids = [label for label in row.tolist() if label >= 0]
    if not ids:
        return -1, np.nan, np.nan
    counts = Counter(ids)
    largest = max(counts.values())
    chosen = next(label for label in ids if counts[label] == largest)
    share = np.array(list(counts.values())) / len(ids)
    entropy = -(share * np.log(share)).sum() / np.log(min(len(ids), N_CLASSES)) if len(ids) > 1 else np.nan
    return chosen, largest / len(ids), entropy


def test_measures_equal_those_from_counts(labels):
    classes, pure, entropy = zip(*map(ref_measures, labels), strict=True)
    assert top_classes(labels).tolist() == list(classes)
    np.testing.assert_allclose(purity(labels, top_classes(labels)), pure)
    np.testing.assert_allclose(normalised_entropy(labels, N_CLASSES), entropy, atol=1e-12)


def test_another_numbering_changes_none_of_them(labels):
    numbering = np.append(np.random.default_rng(2).permutation(N_CLASSES), -1)
    assert (numbering[top_classes(labels)] == top_classes(numbering[labels])).all()
    classes = top_classes(labels)
    np.testing.assert_array_equal(purity(labels, classes), purity(numbering[labels], numbering[classes]))
    np.testing.assert_allclose(
        normalised_entropy(labels, N_CLASSES), normalised_entropy(numbering[labels], N_CLASSES), atol=1e-12
    )


def test_expectations_for_independent_labels_are_means_over_draws():
    frequencies = np.array([50, 30, 0, 15, 5])
    drawn = np.random.default_rng(0).choice(5, (40_000, 7), p=frequencies / 100)
    share = purity(drawn, top_classes(drawn)).mean()
    assert expected_largest_share(frequencies, 7) == pytest.approx(share, abs=0.003)
    assert expected_entropy(frequencies, 7) == pytest.approx(normalised_entropy(drawn, 5).mean(), abs=0.003)


def test_auroc_equals_that_of_scikit_learn():
    generator = np.random.default_rng(3)
    activations = np.maximum(generator.normal(size=(200, 70)).round(1), 0).astype(np.float32)  # ties, and zeros
    activations[:, 5] = 0
    classes, labels = generator.integers(0, 4, 70), generator.integers(0, 4, 200)
    classes[7], classes[8] = -1, 9  # without a class; of a class that no image has
    found = OneVersusRest(activations.copy(), classes).score(labels)
    for latent in set(range(70)) - {7, 8}:
        expected = roc_auc_score(labels == classes[latent], activations[:, latent])
        assert found[latent] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(found[[7, 8]]).all() and found[5] == 0.5


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="3 classes"):
        OneVersusRest(np.zeros((5, 2), dtype=np.float32), np.zeros(3, dtype=np.int64))
    with pytest.raises(ConfigError, match="4 labels for 5 images"):
        OneVersusRest(np.zeros((5, 2), dtype=np.float32), np.zeros(2, dtype=np.int64)).score(np.zeros(4, dtype=int))
