import torch

from diffprobe.metrics.l0 import make


def test_by_hand():
    metric = make(d_in=7, n_latents=4)
    metric.update(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 3]]))
    metric.update(torch.tensor([[0.5, 0.0]]), torch.tensor([[1, 2]]))
    assert float(metric.compute()) == 4 / 3
