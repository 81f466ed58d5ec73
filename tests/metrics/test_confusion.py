import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from diffprobe.metrics import accuracy, balanced_accuracy
from diffprobe.metrics.confusion import ConfusionCounts


def test_bank_equals_torchmetrics_and_leaves_out_unlabelled_samples():
    generator = torch.Generator().manual_seed(0)
    widths, bank = [3, 5], ConfusionCounts([3, 5])
    logits = [torch.randn(90, c, generator=generator) for c in widths]
    labels = [torch.randint(-1, c, (90,), generator=generator) for c in widths]
    for i in range(0, 90, 40):
        for head in range(2):
            bank.update(head, logits[head][i : i + 40], labels[head][i : i + 40])
    for head, counts in enumerate(bank.compute()):
        known = labels[head] >= 0
        args = (logits[head][known], labels[head][known], widths[head])
        assert accuracy.from_confusion(counts) == pytest.approx(float(multiclass_accuracy(*args, average="micro")))
        expected = float(multiclass_accuracy(*args, average="macro"))
        assert balanced_accuracy.from_confusion(counts) == pytest.approx(expected)
        assert int(counts.sum()) == int(known.sum())
        pairs = zip(labels[head][known].tolist(), logits[head][known].argmax(1).tolist(), strict=True)
        by_hand = torch.zeros_like(counts)
        for true, predicted in pairs:
            by_hand[true, predicted] += 1
        assert counts.equal(by_hand)
        shares = [float((labels[head][known] == cls).double().mean()) for cls in range(widths[head])]
        assert accuracy.chance(counts) == pytest.approx(max(shares))
        assert balanced_accuracy.chance(counts) == 1 / widths[head]


def test_classes_without_samples_do_not_count():
    counts = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert balanced_accuracy.from_confusion(counts) == 0.75 and balanced_accuracy.chance(counts) == 0.5
