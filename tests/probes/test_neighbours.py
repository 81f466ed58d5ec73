"""Exact neighbours: scikit-learn's, whatever the blocks, with the earlier row first among equal distances."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.neighbours import nearest


def samples(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [2**22, 40, 1])
def test_they_are_those_of_scikit_learn(metric, block):
    x, among = samples(23, 5, 0), samples(60, 5, 1)
    found = nearest(x, among, k=7, metric=metric, block=block)[0]
    reference = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(among.double().numpy())
    distance, row = reference.kneighbors(x.double().numpy())
    assert found.row.tolist() == row.tolist()
    expected = torch.tensor(distance) if metric == "cosine" else torch.tensor(distance) ** 2 / 5
    assert torch.allclose(found.distance, expected, atol=2e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_equal_distances_the_earlier_row_is_the_nearer(metric):
    one = samples(4, 6, 2)
    among = one.repeat(20, 1)  # every sample 20 times
    for block in (2**22, 100, 13):
        found = nearest(one, among, k=9, metric=metric, block=block)[0]
        assert found.row.tolist() == [[i + 4 * j for j in range(9)] for i in range(4)]
        assert not found.distance.any()


def test_blocks_and_batches_do_not_change_a_bit():
    x, among = samples(50, 33, 3), samples(211, 33, 4)
    whole = nearest(x, among, k=20, metric="cosine")[0]
    for block in (7000, 500):
        for size in (50, 7):
            parts = [nearest(part, among, k=20, metric="cosine", block=block)[0] for part in x.split(size)]
            assert torch.cat([part.row for part in parts]).equal(whole.row)
            assert torch.cat([part.distance for part in parts]).equal(whole.distance)


def test_a_mask_is_a_search_among_its_samples():
    x, among = samples(12, 4, 5), samples(80, 4, 6)
    masks = [torch.arange(80) % 3 == 0, torch.ones(80, dtype=torch.bool), torch.arange(80) > 70]
    for mask, found in zip(masks, nearest(x, among, k=5, allowed=masks, block=60), strict=True):
        alone = nearest(x, among[mask], k=5)[0]
        assert found.row.equal(mask.nonzero()[:, 0][alone.row]) and found.distance.equal(alone.distance)


def test_a_vector_of_zeros_has_the_same_cosine_with_all():
    found = nearest(torch.zeros(1, 3), samples(6, 3, 7), k=3, metric="cosine")[0]
    assert found.row.tolist() == [[0, 1, 2]] and found.distance.tolist() == [[1.0, 1.0, 1.0]]
    assert nearest(torch.zeros(0, 3), samples(6, 3, 7), k=3)[0].row.shape == (0, 3)


def test_what_cannot_be_searched_is_refused():
    x = samples(4, 3, 8)
    with pytest.raises(ConfigError, match=r"k=5[\s\S]*4 training samples[\s\S]*probe.params.k=4"):
        nearest(x, x, k=5)
    with pytest.raises(ConfigError, match="k=0"):
        nearest(x, x, k=0)
    x[2, 1] = torch.inf
    with pytest.raises(NonFinite, match="1 of 4[\\s\\S]*row 2"):
        nearest(x, samples(9, 3, 9), k=2)
