import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.probes.caption.shuffled_captions import shuffle_captions


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 5))
def test_each_group_gets_the_captions_of_one_other_group(groups, seed):
    groups = np.array(groups)
    captions = 100 * groups + np.arange(len(groups))  # a caption tells its group
    found = shuffle_captions(captions, groups, seed=seed)
    several = len(np.unique(groups)) > 1
    sources = []
    for group in np.unique(groups):
        of_group = np.unique(found[groups == group] // 100)
        assert len(of_group) == 1 and (of_group[0] != group) == several
        sources.append(of_group[0])
        assert set(found[groups == group]) <= set(captions[groups == of_group[0]])
    assert sorted(sources) == sorted(np.unique(groups))


def test_samples_without_a_group_are_groups_of_their_own():
    found = shuffle_captions(np.arange(6), np.full(6, -1), seed=0)
    assert sorted(found) == list(range(6)) and (found != np.arange(6)).all()


def test_the_seed_fixes_the_order():
    captions, groups = np.arange(30), np.arange(30) // 3
    one, again, other = (shuffle_captions(captions, groups, seed=seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
