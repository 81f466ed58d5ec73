import torch
from torch import nn

from diffprobe.backbones.memory_estimate import held_weights, peak_activations


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


def test_of_offloaded_blocks_the_two_neighbours_that_are_largest_together_count() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 2), nn.Linear(2, 10), nn.Linear(10, 3))
    sizes = [50, 22, 30, 33]
    assert held_weights(net, ["0", "1", "2", "3"], torch.float32, offload=True) == (4 * (33 + 50), 0)  # last and first
    assert held_weights(net, ["0", "1"], torch.bfloat16, offload=True) == (2 * sum(sizes), 0)
    assert held_weights(net, ["1"], torch.float32, offload=True) == (4 * sum(sizes), 0)
    assert held_weights(net, [], torch.float32) == (4 * sum(sizes), 0)


def test_quantised_blocks_count_by_their_format_and_one_more_while_they_are_read() -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.LayerNorm(10), nn.Linear(10, 3))
    held, loading = held_weights(net, ["0", "1"], torch.bfloat16, quantize="int8")
    assert held == (40 + 10 * 5 + 10 * 2) + 20 * 2 + 33 * 2 and loading == 50 * 2
