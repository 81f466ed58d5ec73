import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from diffprobe.metrics import accuracy, balanced_accuracy
from diffprobe.metrics.confusion import ConfusionCounts, score_heads


def test_bank_equals_torchmetrics_and_leaves_out_unlabelled_samples():
    generator = torch.Generator().manual_seed(0)
    widths, bank = [3, 5], ConfusionCounts([3, 5])
    logits = [torch.randn(90, c, generator=generator) for c in widths]
    labels = [torch.randint(-1, c, (90,), generator=generator) for c in widths]
    for i in range(0, 90, 40):
        for head in range(2):
            bank.update(torch.tensor([head]), logits[head][None, i : i + 40].argmax(2), labels[head][None, i : i + 40])
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


@pytest.mark.parametrize("n_classes", [2, 3, 8, 94])
def test_heads_are_scored_together_as_alone_to_the_last_bit(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    held = torch.randint(0, 30, (n_classes,), generator=generator)
    held[1], held[0] = 0, 5  # a class without a sample
    counts = []
    for _ in range(5):
        own = torch.zeros(n_classes, n_classes, dtype=torch.int64)
        for true, n in enumerate(held.tolist()):
            for predicted in torch.randint(0, n_classes, (n,), generator=generator).tolist():
                own[true, predicted] += 1
        counts.append(own)
    counts.append(torch.ones(4, 4, dtype=torch.int64) if n_classes != 4 else counts[0])
    targets = ["a"] * 5 + ["b"]
    scores, samples = score_heads([accuracy, balanced_accuracy], counts, targets)
    for score, matrix, own in zip(scores, counts, samples, strict=True):
        assert own.equal(matrix.sum(1)) and score["n"] == int(matrix.sum()) and score["n_seen"] == int((own > 0).sum())
        for metric in (accuracy, balanced_accuracy):
            assert score[metric.NAME] == metric.from_confusion(matrix)
            assert score[f"chance/{metric.NAME}"] == metric.chance(matrix)
    mixed = torch.stack([counts[0], counts[0].T])  # other classes have samples
    assert balanced_accuracy.from_confusions(mixed) == [balanced_accuracy.from_confusion(one) for one in mixed]


def test_a_head_without_samples_has_no_score():
    scores, _ = score_heads([accuracy], [torch.zeros(2, 2, dtype=torch.int64), torch.eye(2).long()], ["a", "b"])
    assert scores[0] == {"n": 0, "n_seen": 0} and scores[1]["accuracy"] == 1.0
