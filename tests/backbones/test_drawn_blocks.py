import torch
from torch import nn

from diffprobe.backbones.drawn_blocks import drawn_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), Block(), Block(), nn.Linear(2, 2))


def test_blocks_are_handed_over_in_order_and_are_those_of_a_network_made_whole() -> None:
    torch.manual_seed(0)
    whole = network().state_dict()
    init, seen = Block.__init__, {}
    with torch.device("meta"):
        described = network()

    def made(path: str, block: nn.Module) -> None:
        seen[path] = {name: value.clone() for name, value in block.state_dict().items()}
        nn.Module.to(block, "meta")  # freed: the ones behind it must not change

    with drawn_blocks(described, ["1", "2"], made):
        torch.manual_seed(0)
        built = network()
    assert list(seen) == ["1", "2"] and Block.__init__ is init
    for path, values in seen.items():
        assert all(torch.equal(value, whole[f"{path}.{name}"]) for name, value in values.items())
    after = built.state_dict()
    assert torch.equal(after["3.weight"], whole["3.weight"]) and after["1.first.weight"].is_meta


def test_the_class_is_as_it_was_after_a_fault() -> None:
    init = Block.__init__
    try:
        with drawn_blocks(network(), ["1"], lambda path, block: None):
            raise ValueError
    except ValueError:
        pass
    assert Block.__init__ is init
