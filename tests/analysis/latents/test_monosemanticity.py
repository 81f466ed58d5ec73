"""The MonoSemanticity score equals the double loop over pairs, in any order, and its test finds structure."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.monosemanticity import MonosemanticitySums, monosemanticity, unit_rows
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.groups import Groups
from tests.analysis.latents.planted_codes import FISH, OWL, collected, world


def by_pairs(dense, embeddings):
    """Pach et al. 2025: the mean cosine over pairs of different images, weighted by both activations."""
    found, embeddings = [], embeddings.astype(np.float64)
    for a in dense.T:
        total, weight = 0.0, 0.0
        for i in range(len(a)):
            for j in range(len(a)):
                if i != j:
                    cosine = embeddings[i] @ embeddings[j]
                    cosine /= np.linalg.norm(embeddings[i]) * np.linalg.norm(embeddings[j])
                    total += a[i] * a[j] * cosine
                    weight += a[i] * a[j]
        found.append(total / weight if weight else np.nan)
    return np.array(found)


@pytest.fixture
def problem():
    generator = np.random.default_rng(0)
    dense = np.where(generator.random((40, 5)) < 0.4, generator.random((40, 5)), 0.0)
    dense[:, 3] = 0
    dense[1:, 4] = 0
    dense[0, 4] = 1.0  # never active, and once
    return dense, generator.standard_normal((40, 3)).astype(np.float32)


def streamed(dense, embeddings, parts):
    sums = MonosemanticitySums(5, 3)
    for rows in parts:
        values, indices = torch.from_numpy(dense[rows]).topk(5, dim=1)
        sums.update(values, indices, torch.from_numpy(embeddings[rows]))
    return sums


def test_the_identity_equals_the_double_loop(problem):
    dense, embeddings = problem
    expected = by_pairs(dense, embeddings)
    assert np.isnan(expected).tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(streamed(dense, embeddings, [np.arange(40)]).result(), expected, atol=1e-12)
    codes = collected(dense, [f"{i:02d}" for i in range(40)])
    found = monosemanticity(codes, embeddings, Groups.of_values(np.full(40, -1)), PermutationSettings(most=50))
    np.testing.assert_allclose(found.score, expected, atol=1e-12)
    np.testing.assert_allclose(found.between, expected, atol=1e-12)  # each image is a group
    ones = by_pairs(np.ones((40, 1)), embeddings)[0]
    assert found.chance == pytest.approx(ones) == streamed(dense, embeddings, [np.arange(40)]).chance()


def test_batches_order_and_processes_do_not_matter(problem):
    dense, embeddings = problem
    expected = streamed(dense, embeddings, [np.arange(40)]).result()
    order = np.random.default_rng(1).permutation(40)
    for parts in (np.array_split(order, 13), np.array_split(np.arange(40), 40)):
        np.testing.assert_allclose(streamed(dense, embeddings, parts).result(), expected, atol=1e-12)
    first, second = (streamed(dense, embeddings, [np.arange(i, 40, 2)]) for i in (0, 1))
    first.merge(second)
    np.testing.assert_allclose(first.result(), expected, atol=1e-12)


def test_the_unit_of_activations_and_embeddings_does_not_matter(problem):
    dense, embeddings = problem
    expected = streamed(dense, embeddings, [np.arange(40)]).result()
    np.testing.assert_allclose(streamed(7 * dense, 0.1 * embeddings, [np.arange(40)]).result(), expected, atol=1e-6)


def test_planted_latents_are_found_and_shuffled_embeddings_are_not():
    test = world(1)
    found = monosemanticity(test.codes, test.embeddings, test.groups, PermutationSettings(most=1000))
    assert {OWL, FISH} <= set(np.flatnonzero(found.q <= 0.05)) and found.score[OWL] > found.chance + 0.3
    generator = np.random.default_rng(2)
    p = [
        monosemanticity(
            test.codes,
            generator.standard_normal((240, 6)).astype(np.float32),
            test.groups,
            PermutationSettings(most=199),
        ).p
        for _ in range(10)
    ]
    p = np.concatenate(p)
    assert (p <= 0.05).mean() <= 0.05 + 5 * np.sqrt(0.05 / len(p))


def test_variants_of_one_drawing_are_no_pairs_between_groups():
    """Four equal images of one group are alike to the paper's score, and give no pair of groups."""
    group = np.repeat(np.arange(5), 4)
    embeddings = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)[group]
    codes = collected((group == 2).astype(np.float64)[:, None], [f"{i:02d}" for i in range(20)])
    found = monosemanticity(codes, embeddings, Groups.of_values(group), PermutationSettings(most=50))
    assert found.score[0] == pytest.approx(1.0) and np.isnan(found.between[0]) and np.isnan(found.p[0])


def test_bad_embeddings_are_refused(problem):
    dense, embeddings = problem
    codes = collected(dense, [f"{i:02d}" for i in range(40)])
    with pytest.raises(ConfigError, match="40 images"):
        monosemanticity(codes, embeddings[:5], Groups.of_values(np.full(40, -1)))
    for bad in (0.0, np.nan):
        wrong = embeddings.copy()
        wrong[3] = bad
        with pytest.raises(NonFinite, match="embedding 3 of 40"):
            unit_rows(wrong)
    with pytest.raises(ConfigError, match="width 2 for sums of width 3"):
        MonosemanticitySums(5, 3).update(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="sums of shape"):
        MonosemanticitySums(5, 3).merge(MonosemanticitySums(5, 4))
