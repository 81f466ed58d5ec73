import torch
from torch import nn

from diffprobe.backbones.memory_estimate import peak_activations


def test_the_peak_counts_what_is_alive_and_no_weights() -> None:
    net = nn.Sequential(nn.Linear(100, 10, bias=False), nn.Linear(10, 10, bias=False))
    x = torch.zeros(8, 100)
    assert peak_activations(net, lambda: net(x)) == 2 * 8 * 10 * 4  # the input of a layer and its output


def test_the_meta_device_gives_the_peak_of_a_real_pass() -> None:
    def peak(device: str) -> int:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 16, 3, stride=2), nn.GroupNorm(2, 16))
        net, x = net.to(device), torch.zeros(4, 3, 32, 32, device=device)
        return peak_activations(net, lambda: net(x))

    assert peak("cpu") > 0 and abs(peak("meta") / peak("cpu") - 1) < 0.05


def test_attention_keeps_no_scores() -> None:
    def run() -> torch.Tensor:
        x = torch.empty(1, 1, 4096, 8, device="meta")
        return nn.functional.scaled_dot_product_attention(x, x, x)

    assert peak_activations(nn.Identity(), run) == 2 * 4096 * 8 * 4
