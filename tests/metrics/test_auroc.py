import pytest
import torch

from diffprobe.core.errors import EmptyClass, NonFinite
from diffprobe.metrics.auroc import Auroc, auroc


def brute_force(score, positive):
    wins = [(p > n).double() + 0.5 * (p == n).double() for p in score[positive] for n in score[~positive]]
    return float(torch.stack(wins).mean())


def test_equals_brute_force_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 3), generator=generator).float()
    positive = torch.rand(40, generator=generator) > 0.6
    got = auroc(scores, positive)
    assert got.tolist() == pytest.approx([brute_force(scores[:, j], positive) for j in range(3)], abs=1e-12)
    assert auroc(-scores, positive).tolist() == pytest.approx((1 - got).tolist(), abs=1e-12)


def test_batches_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    scores, positive = torch.randn(50, 2, generator=generator), torch.rand(50, generator=generator) > 0.5
    metric = Auroc(2)
    for i in (0, 7, 30):
        metric.update(scores[i : {0: 7, 7: 30, 30: 50}[i]], positive[i : {0: 7, 7: 30, 30: 50}[i]])
    assert metric.compute().tolist() == auroc(scores, positive).tolist()
    assert metric.counts == (int(positive.sum()), int((~positive).sum()))


def test_infinity_has_a_rank_and_nan_has_none():
    positive = torch.tensor([True, False, True, False])
    scores = torch.tensor([[float("inf"), 1.0], [2.0, 0.0], [1.0, 3.0], [float("-inf"), 2.0]])
    assert auroc(scores, positive).tolist() == [0.75, 0.75]
    scores[1, 1] = float("nan")
    with pytest.raises(NonFinite, match="1 of 4 samples"):
        auroc(scores, positive)


def test_one_sided_labels_are_an_error():
    with pytest.raises(EmptyClass, match="0 positive and 3 negative"):
        auroc(torch.zeros(3, 1), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(EmptyClass, match="0 positive and 0 negative"):
        Auroc(1).compute()
