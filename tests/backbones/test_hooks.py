import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.hooks import Capture, PrunedModule, prune_after, trace
from diffprobe.backbones.layout import OutputLayout
from diffprobe.core.errors import RunFailed

LAYOUT = OutputLayout(size=(4, 4))


def _clone(x: Tensor, rows: object) -> Tensor:
    return x.clone()


class Toy(nn.Module):
    """Three convolutions, the last one behind a shared activation; `ran` notes what really ran."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1)])
        self.act = nn.Tanh()
        self.ran: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            self.ran.append(i)
            x = self.act(block(x))
        return x


@pytest.fixture
def traced() -> object:
    with torch.device("meta"):
        network = Toy()
    return trace(network, lambda n: n(torch.empty(1, 3, 8, 8, device="meta")), OutputLayout(size=(8, 8)))


def test_a_trace_knows_shapes_order_and_cost(traced: object) -> None:
    assert {path: (tap.channels, tap.size) for path, tap in traced.taps.items()} == {
        "blocks.0": (4, (8, 8)),
        "blocks.1": (5, (8, 8)),
        "blocks.2": (6, (8, 8)),
    }  # act runs three times in a pass, so it cannot be a tap
    flops = [2 * 64 * n for n in (12, 20, 30)]
    assert [tap.flops for tap in traced.taps.values()] == [flops[0], sum(flops[:2]), sum(flops)]
    assert traced.flops == sum(flops)


def test_a_trace_tells_maps_from_tokens() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 1), "flat": nn.Flatten(2), "linear": nn.Linear(5, 6)})
    found = trace(network, lambda n: n["linear"](n["flat"](n["conv"](torch.zeros(1, 3, 4, 4))).transpose(1, 2)), LAYOUT)
    assert {path: (tap.form, tap.channels, tap.size) for path, tap in found.taps.items()} == {
        "conv": ("map", 5, (4, 4)),
        "linear": ("tokens", 6, (4, 4)),
    }


def test_only_what_runs_before_the_deepest_tap_is_needed(traced: object) -> None:
    assert traced.needed(["blocks.0"]) == {"blocks.0"}
    assert traced.needed(["blocks.1", "blocks.0"]) == {"blocks.0", "blocks.1", "act"}


def test_a_cut_network_keeps_its_length_and_loses_its_weights() -> None:
    network = Toy()
    prune_after(network, {"blocks.0", "act"})
    assert len(network.blocks) == 3 and isinstance(network.blocks[1], PrunedModule)
    assert set(network.state_dict()) == {"blocks.0.weight", "blocks.0.bias"}
    with pytest.raises(RunFailed, match="pruned"):
        network(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("stop", [True, False])
def test_capture_reads_what_a_hand_written_pass_gives(stop: bool) -> None:
    network, x = Toy(), torch.randn(2, 3, 4, 4)
    capture = Capture(network, ["blocks.0", "blocks.1"], layout=LAYOUT, read=_clone, stop=stop)
    found = capture(lambda: network(x))
    first = network.blocks[0](x)
    assert torch.equal(found["blocks.0"], first)
    assert torch.equal(found["blocks.1"], network.blocks[1](first.tanh()))
    assert network.ran == ([0, 1] if stop else [0, 1, 2])


def test_lists_are_kept_for_the_code_that_iterates_over_them() -> None:
    network = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]), "end": nn.Linear(1, 1)})
    prune_after(network, {"end"})
    assert [type(layer) for layer in network["layers"]] == [PrunedModule, PrunedModule]


def test_a_count_may_be_left_out() -> None:
    with torch.device("meta"):
        network = Toy()
    found = trace(network, lambda n: n(torch.empty(1, 3, 8, 8, device="meta")), OutputLayout(size=(8, 8)), count=False)
    assert found.flops == 0 and found.taps["blocks.2"].channels == 6


def test_capture_leaves_no_hook_behind_even_after_an_error() -> None:
    network = Toy()
    capture = Capture(network, ["blocks.0"], layout=LAYOUT, read=_clone)
    with pytest.raises(RuntimeError):
        capture(lambda: network(torch.zeros(1, 7, 4, 4)))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_tap_that_is_never_reached_is_an_error() -> None:
    network = Toy()
    with pytest.raises(RunFailed, match=r"blocks\.2"):
        Capture(network, ["blocks.2"], layout=LAYOUT, read=_clone)(lambda: None)
