import pytest
import torch

from diffprobe.core.errors import RunFailed
from diffprobe.probes.label_subset import LabelSubset
from diffprobe.probes.shuffled_labels import hash_keys

KEYS = [f"key-{i}" for i in range(101)]
HASHES = hash_keys(KEYS)
LABEL = torch.arange(101) % 4 - 1  # 26 without a label, 25 of each class


def subset(fraction, seed=0, target="label", order=slice(None)):
    return LabelSubset(HASHES[order], LABEL[order], fraction=fraction, seed=seed, target=target)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.1, 3), (0.2, 5), (1.0, 25)])
def test_each_class_keeps_its_share(fraction, count):
    kept = subset(fraction).mask(HASHES)
    assert LABEL[kept].bincount().tolist() == [count] * 3 and (LABEL[kept] >= 0).all()


def test_smaller_shares_are_inside_larger_ones():
    masks = [subset(fraction).mask(HASHES) for fraction in (0.05, 0.3, 0.7)]
    assert all((small <= large).all() for small, large in zip(masks, masks[1:], strict=False))


def test_the_choice_depends_on_seed_and_target_but_not_on_order():
    chosen = subset(0.3).mask(HASHES)
    assert subset(0.3, order=torch.randperm(101)).mask(HASHES).equal(chosen)
    assert not subset(0.3, seed=1).mask(HASHES).equal(chosen)
    assert not subset(0.3, target="style").mask(HASHES).equal(chosen)
    with pytest.raises(RunFailed, match="did not see"):
        subset(0.3).mask(hash_keys(["unknown"]))
