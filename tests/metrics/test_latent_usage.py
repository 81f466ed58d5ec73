import torch

from diffprobe.metrics.latent_usage import LatentUsage, count_active

VALUES, INDICES = torch.tensor([[3.0, 1.0], [2.0, 0.0], [0.5, 0.0]]), torch.tensor([[0, 1], [0, 3], [1, 2]])


def test_by_hand():
    use = LatentUsage(4)
    for rows in torch.arange(3).split(2):
        use.update(VALUES[rows], INDICES[rows])
    assert use.compute().tolist() == [2 / 3, 2 / 3, 0, 0]  # latents 2 and 3 were selected at zero only
    assert use.active.equal(count_active(VALUES, INDICES, 4)) and int(use.n) == 3
