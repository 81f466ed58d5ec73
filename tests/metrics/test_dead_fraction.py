import torch

from diffprobe.metrics.dead_fraction import make


def test_by_hand():
    metric = make(d_in=7, n_latents=4)
    metric.update(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 3]]))
    metric.update(torch.tensor([[0.5, 0.0]]), torch.tensor([[1, 2]]))
    assert float(metric.compute()) == 0.5  # latents 2 and 3 were selected at zero only
    detail = metric.detail()
    assert detail["window"] == 3 and "this split" in detail["dead"]
