"""Pairs of images: each image once, the conditions met, clusters joined over shared groups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffprobe.analysis.image_pairs import disjoint_pairs, own_pairs, pair_clusters
from diffprobe.core.errors import ConfigError

LETTERS = "aabbccddee" * 4


def test_each_image_is_in_one_pair_and_every_pair_fits() -> None:
    pairs = disjoint_pairs(LETTERS, lambda x, y: x != y, n=18, seed=1, what="letters")
    places = [place for pair in pairs for place in pair]
    assert len(pairs) == 18 and len(set(places)) == 36
    assert all(LETTERS[one] != LETTERS[other] for one, other in pairs)


def test_fewer_pairs_are_the_first_of_more_and_a_seed_draws_others() -> None:
    def drawn(n: int, seed: int) -> list[tuple[int, int]]:
        return disjoint_pairs(LETTERS, lambda x, y: x == y, n=n, seed=seed, what="letters")

    assert drawn(5, 0) == drawn(12, 0)[:5] and drawn(5, 0) != drawn(5, 1)


def test_too_few_pairs_are_counted() -> None:
    with pytest.raises(ConfigError, match="letters: 2 pairs of 5 images, 3 are asked for"):
        disjoint_pairs("aabbc", lambda x, y: x == y, n=3, seed=0, what="letters")


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=20))
def test_clusters_are_the_components_of_the_groups(pairs: list[tuple[int, int]]) -> None:
    found = pair_clusters(pairs)
    links = ([1] * len(pairs), ([one for one, _ in pairs], [other for _, other in pairs]))
    _, components = connected_components(coo_array(links, shape=(13, 13)), directed=False)
    expected = [components[one] for one, _ in pairs]
    same = {
        (a == b) == (c == d) for a, c in zip(found, expected, strict=True) for b, d in zip(found, expected, strict=True)
    }
    assert same <= {True}


def test_an_image_can_be_its_own_pair() -> None:
    found = own_pairs(LETTERS, lambda x: x in "ab", n=6, seed=0, what="letters")
    assert len(set(found)) == 6 and all(one == other and LETTERS[one] in "ab" for one, other in found)
    assert found == own_pairs(LETTERS, lambda x: x in "ab", n=16, seed=0, what="letters")[:6]
    with pytest.raises(ConfigError, match="16 images of 40 fit, 17"):
        own_pairs(LETTERS, lambda x: x in "ab", n=17, seed=0, what="letters")
