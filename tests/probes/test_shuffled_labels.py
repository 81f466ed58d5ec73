import pytest
import torch

from diffprobe.core.errors import RunFailed
from diffprobe.probes.shuffled_labels import ShuffledLabels, hash_keys

KEYS = [f"sample-{i}" for i in range(60)]
LABEL = torch.tensor([i % 4 - 1 for i in range(60)])


def test_the_order_of_the_samples_does_not_matter():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label")
    two = ShuffledLabels(hash_keys([KEYS[i] for i in order]), LABEL[order], seed=0, target="label")
    assert one.of(hash_keys(KEYS)).equal(two.of(hash_keys(KEYS)))


def test_it_is_a_permutation_of_the_known_labels_that_moves_them():
    got = ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label").of(hash_keys(KEYS))
    assert (got[LABEL < 0] == -1).all()
    assert torch.bincount(got[LABEL >= 0]).equal(torch.bincount(LABEL[LABEL >= 0]))
    assert (got[LABEL >= 0] != LABEL[LABEL >= 0]).sum() > 15  # 2 of 3 move on average


def test_seed_target_and_draw_give_other_permutations():
    variants = [{"seed": 1}, {"target": "group"}, {"draw": 1}]
    base = {"seed": 0, "target": "label", "draw": 0}
    first = ShuffledLabels(hash_keys(KEYS), LABEL, **base).of(hash_keys(KEYS))
    for change in variants:
        assert not ShuffledLabels(hash_keys(KEYS), LABEL, **{**base, **change}).of(hash_keys(KEYS)).equal(first)


def test_unknown_and_double_keys_are_errors():
    with pytest.raises(RunFailed, match="did not"):
        ShuffledLabels(hash_keys(KEYS), LABEL, seed=0, target="label").of(hash_keys(["other"]))
    with pytest.raises(RunFailed, match="duplicate key"):
        ShuffledLabels(hash_keys(["a", "a"]), torch.tensor([0, 1]), seed=0, target="label")
