import torch

from diffprobe.metrics.label_collector import LabelCollector


def test_the_order_of_batches_is_gone():
    hashes, labels = torch.tensor([5, 1, 9]), torch.tensor([[50, 0], [10, 1], [90, 2]])
    one, two = LabelCollector(2), LabelCollector(2)
    one.update(hashes, labels)
    two.update(hashes[2:], labels[2:])
    two.update(hashes[:2], labels[:2])
    for metric in (one, two):
        got_hashes, got_labels = metric.compute()
        assert got_hashes.tolist() == [1, 5, 9] and got_labels.tolist() == [[10, 1], [50, 0], [90, 2]]
