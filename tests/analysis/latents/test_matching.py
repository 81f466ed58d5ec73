"""Blockwise similarities against full matrices."""

import numpy as np
import pytest

from diffprobe.analysis.latents import matching
from diffprobe.analysis.latents.matching import (
    SharedCodes,
    match_activations,
    match_decoders,
    nearest_in_dictionary,
    random_cosines,
)
from diffprobe.core.errors import ConfigError, NonFinite


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(matching, "_BLOCK", 7)


@pytest.fixture
def decoder():
    rows = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    rows[3] = -2 * rows[30]
    rows[11] = 0
    return rows


def cosines(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def test_the_nearest_latents_are_those_of_the_full_matrix(decoder):
    found = nearest_in_dictionary(decoder, 3)
    expected = cosines(decoder, decoder)
    np.fill_diagonal(expected, np.nan)
    for latent in set(range(40)) - {11}:
        best = sorted(range(40), key=lambda i: -np.nan_to_num(abs(expected[latent, i]), nan=-1.0))[:3]
        assert found.latent[latent].tolist() == best
        np.testing.assert_allclose(found.similarity[latent], expected[latent, best], atol=1e-6)
    assert (found.latent[3, 0], round(float(found.similarity[3, 0]), 5)) == (30, -1.0)
    assert found.latent[11].tolist() == [-1, -1, -1] and np.isnan(found.similarity[11]).all()


def test_a_small_dictionary_has_fewer_neighbours():
    found = nearest_in_dictionary(np.eye(2, dtype=np.float32), 5)
    assert found.latent.tolist() == [[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]]
    assert (nearest_in_dictionary(np.ones((1, 2), dtype=np.float32), 1).latent == -1).all()


def test_a_permuted_dictionary_is_matched_latent_by_latent(decoder):
    order = np.random.default_rng(0).permutation(40)
    found = match_decoders(decoder, decoder[order] * 3)
    known = np.arange(40) != 11
    assert (order[found.latent[known, 0]] == np.arange(40)[known]).all()
    np.testing.assert_allclose(found.similarity[known, 0], 1.0, atol=1e-6)
    assert found.latent[11, 0] == -1


def test_opposite_directions_do_not_match():
    found = match_decoders(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0], [0.1, 1.0]]))
    assert found.latent.tolist() == [[1]] and found.similarity[0, 0] == pytest.approx(0.0995, abs=1e-4)


def test_random_directions_are_a_control(decoder):
    kept = np.delete(decoder, 11, axis=0)
    assert np.median(random_cosines(kept, 40)) < 0.95
    np.testing.assert_array_equal(random_cosines(kept, 40, seed=1), random_cosines(kept, 40, seed=1))


def codes_of(dense):
    row, latent = np.nonzero(dense)
    return SharedCodes(row=row, latent=latent, value=dense[row, latent], n_latents=dense.shape[1], n_images=len(dense))


def test_correlations_are_those_of_dense_activations():
    generator = np.random.default_rng(3)
    a = generator.random((50, 17)) * (generator.random((50, 17)) < 0.2)
    b = generator.random((50, 12)) * (generator.random((50, 12)) < 0.3)
    b[:, 5] = a[:, 9] * 2
    a[:, 2], b[:, 4], b[:, 7] = 0, 0, 3.0  # inactive latents, and one that does not vary
    found = match_activations(codes_of(a), codes_of(b))
    for latent in set(range(17)) - {2}:
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num([np.corrcoef(a[:, latent], b[:, i])[0, 1] for i in range(12)], nan=-2)
        assert found.latent[latent, 0] == np.argmax(expected)
        assert found.similarity[latent, 0] == pytest.approx(np.max(expected), abs=1e-9)
    assert (found.latent[9, 0], found.latent[2, 0]) == (5, -1) and found.similarity[9, 0] == pytest.approx(1.0)


def test_bad_input_is_named(decoder):
    with pytest.raises(ConfigError, match="width 6 and 5"):
        match_decoders(decoder, decoder[:, :5])
    decoder[7, 2] = np.nan
    with pytest.raises(NonFinite, match="row 7"):
        nearest_in_dictionary(decoder, 1)
    with pytest.raises(ConfigError, match="3 and 4 images"):
        match_activations(codes_of(np.ones((3, 2))), codes_of(np.ones((4, 2))))
