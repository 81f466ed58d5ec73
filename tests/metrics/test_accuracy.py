import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from diffprobe.metrics.accuracy import ClassCounts


def test_bank_equals_torchmetrics_and_leaves_out_unlabelled_samples():
    generator = torch.Generator().manual_seed(0)
    widths, bank = [3, 5], ClassCounts([3, 5])
    logits = [torch.randn(90, c, generator=generator) for c in widths]
    labels = [torch.randint(-1, c, (90,), generator=generator) for c in widths]
    for i in range(0, 90, 40):
        for head in range(2):
            bank.update(head, logits[head][i : i + 40], labels[head][i : i + 40])
    for head, scores in enumerate(bank.compute()):
        known = labels[head] >= 0
        args = (logits[head][known], labels[head][known], widths[head])
        assert scores["accuracy"] == pytest.approx(float(multiclass_accuracy(*args, average="micro")))
        assert scores["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(*args, average="macro")))
        assert scores["n"] == int(known.sum())
        shares = [float((labels[head][known] == cls).double().mean()) for cls in range(widths[head])]
        assert bank.best_constant(head) == pytest.approx(max(shares))
