import torch

from diffprobe.metrics.sparsity import LatentUsage


def test_by_hand():
    use = LatentUsage(4)
    use.update(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 3]]))
    use.update(torch.tensor([[0.5, 0.0]]), torch.tensor([[1, 2]]))
    scores = use.compute()
    assert scores["density"].tolist() == [2 / 3, 2 / 3, 0, 0]  # latents 2 and 3 were selected at zero only
    assert float(scores["l0"]) == 4 / 3
    assert float(scores["dead_fraction"]) == 0.5
