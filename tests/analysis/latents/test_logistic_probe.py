"""Logistic probes of all pairs equal plain fits, however the codes are batched or spread over processes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from diffprobe.analysis.latents.best_value import LabelledCodes
from diffprobe.analysis.latents.logistic_probe import (
    ClassSums,
    CodeBatch,
    NewtonSums,
    batches_of,
    fit_probes,
    probe_scores,
)
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.core.errors import ConfigError
from tests.analysis.latents.planted_codes import CLASSES, DARK, FISH, N_LATENTS, OWL, TONES, collected, world

RIDGE = 0.01


def problem(seed=0, n=150, m=6):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    dense = np.where(generator.random((n, m)) < 0.4, generator.random((n, m)) * 30, 0.0)
    dense[:, 1] = np.where(labels == 1, dense[:, 1], 0.0)  # active for one class only
    dense[:, 2] = (labels == 2) * 5.0  # separates a class
    dense[:, 4] = 1 + generator.random(n)  # always active
    dense[:, 5] = 0
    return dense, labels


def batches(dense, labels, size):
    found = []
    for start in range(0, len(labels), size):
        row, latent = np.nonzero(dense[start : start + size])
        found.append(CodeBatch(row, latent, dense[start + row, latent], labels[start : start + size]))
    return found


def test_fits_equal_those_of_scikit_learn():
    dense, labels = problem()
    probes = fit_probes(lambda: batches(dense, labels, 40), 6, 3, ridge=RIDGE)
    share = np.bincount(labels) / len(labels)
    for j in range(5):
        x = dense[:, j]
        scale = np.sqrt((x[x > 0] ** 2).mean())
        for c in range(3):
            plain = LogisticRegression(C=1 / RIDGE, tol=1e-12, max_iter=10_000).fit(x[:, None] / scale, labels == c)
            predicted = plain.predict_proba(x[:, None] / scale)[:, 1]
            before = log_loss(labels == c, np.full(len(labels), share[c]))
            gain = (before - log_loss(labels == c, predicted)) / np.log(2)
            assert probes.bits[j, c] == pytest.approx(gain, abs=1e-6)
            if (j, c) != (2, 2) and j != 1:  # nearly separated: the loss is flat there
                assert probes.slope[j, c] * scale == pytest.approx(plain.coef_[0, 0], abs=2e-3)
                assert probes.intercept[j, c] == pytest.approx(plain.intercept_[0], abs=2e-3)
    np.testing.assert_allclose(probes.bits[5], 0, atol=1e-9)
    assert probes.bits[2, 2] == pytest.approx(-(share[2] * np.log2(share[2]) + (1 - share[2]) * np.log2(1 - share[2])),
                                              rel=0.01)  # fmt: skip
    assert probes.n_passes < 60


@pytest.mark.parametrize("size", [1, 7, 150])
def test_batches_and_order_do_not_matter(size):
    dense, labels = problem()
    whole = fit_probes(lambda: batches(dense, labels, 150), 6, 3)
    order = np.random.default_rng(3).permutation(len(labels))
    other = fit_probes(lambda: batches(dense[order], labels[order], size), 6, 3)
    np.testing.assert_allclose(other.slope, whole.slope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.bits, whole.bits, atol=1e-10)


def test_two_processes_give_the_fit_of_one():
    """Each sum of the halves, merged, is the sum of the whole; so is every step that follows from it."""
    dense, labels = problem()
    halves = [batches(dense[i::2], labels[i::2], 20) for i in (0, 1)]

    def reduce(sums):
        if isinstance(sums, ClassSums):
            other = ClassSums(6, 3)
        else:
            other = NewtonSums(sums.slope, sums.intercept, sums.scale, sums.classes)
        for batch in halves[1]:
            other.update(batch)
        sums.merge(other)

    merged = fit_probes(lambda: halves[0], 6, 3, reduce=reduce)
    whole = fit_probes(lambda: batches(dense, labels, 150), 6, 3)
    np.testing.assert_allclose(merged.bits, whole.bits, atol=1e-10)
    np.testing.assert_allclose(merged.slope, whole.slope, rtol=1e-6, atol=1e-9)


def test_the_unit_of_the_activations_does_not_matter():
    dense, labels = problem()
    one = fit_probes(lambda: batches(dense, labels, 150), 6, 3)
    other = fit_probes(lambda: batches(dense * 1000, labels, 150), 6, 3)
    np.testing.assert_allclose(other.slope * 1000, one.slope, rtol=1e-6, atol=1e-9)


def test_held_out_gain_is_that_of_a_plain_evaluation():
    worlds = [world(0, prefix="a"), world(1, prefix="b")]
    train, test = (LabelledCodes(codes=w.codes, labels=w.label, groups=w.groups) for w in worlds)
    probes = fit_probes(lambda: batches_of(train), N_LATENTS, len(CLASSES))
    value = probes.bits.argmax(1)
    value[-1] = -1
    found = probe_scores(train, test, value, len(CLASSES), permutations=PermutationSettings(most=500))
    for j in (0, OWL, FISH, 20):
        x = np.zeros(test.codes.n_images)
        mine = test.codes.latent == j
        x[test.codes.row[mine]] = test.codes.value[mine]
        c = value[j]
        has = test.labels == c
        logit = probes.slope[j, c] * x + probes.intercept[j, c]
        gain = log_loss(has, np.full(len(x), (train.labels == c).mean())) - log_loss(has, 1 / (1 + np.exp(-logit)))
        assert found.bits[j] == pytest.approx(gain / np.log(2), abs=1e-5)
        assert found.train_bits[j] == pytest.approx(probes.bits[j, c], abs=1e-6)  # fitted alone or with the others
    assert np.isnan(found.bits[N_LATENTS - 1]) and np.isnan(found.p[N_LATENTS - 1])


def test_planted_values_are_found():
    for target, n, planted in (("label", len(CLASSES), {OWL: 3, FISH: 2}), ("tone", len(TONES), {DARK: 0})):
        worlds = [world(0, prefix="a"), world(1, prefix="b")]
        train, test = (LabelledCodes(codes=w.codes, labels=getattr(w, target), groups=w.groups) for w in worlds)
        value = fit_probes(lambda: batches_of(train), N_LATENTS, n).bits.argmax(1)  # noqa: B023
        found = probe_scores(train, test, value, n, permutations=PermutationSettings(most=2000))
        assert set(np.flatnonzero(found.q <= 0.05)) == set(planted)
        for latent, chosen in planted.items():
            if n > 2:  # with two values the probes of both are the same
                assert value[latent] == chosen
            assert found.bits[latent] > 0.3


def test_shuffled_labels_are_rarely_found():
    share = []
    for seed in range(10):
        worlds = [world(50 + 2 * seed, prefix="a", planted=False), world(51 + 2 * seed, prefix="b", planted=False)]
        train, test = (LabelledCodes(codes=w.codes, labels=w.label, groups=w.groups) for w in worlds)
        value = fit_probes(lambda: batches_of(train), N_LATENTS, len(CLASSES)).bits.argmax(1)  # noqa: B023
        p = probe_scores(train, test, value, len(CLASSES), permutations=PermutationSettings(most=300, seed=seed)).p
        share.append(p[~np.isnan(p)] <= 0.05)
    share = np.concatenate(share)
    assert share.mean() <= 0.05 + 4 * np.sqrt(0.05 / len(share))


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="ridge=0"):
        fit_probes(list, 3, 2, ridge=0)
    with pytest.raises(ConfigError, match="no image has a class"):
        fit_probes(list, 3, 2)
    with pytest.raises(ConfigError, match="3 latents and 1 classes"):
        ClassSums(3, 1)
    codes = collected(np.ones((4, 2)), list("abcd"))
    assert codes.n_images == 4
