"""A low-rank part of the weights of a network, trained with it and separable from it: W = W_general + up @ down.

Every linear layer and convolution of the network gets one. All passes use the sum, except within `without`. Merged, the
network has the sums as its weights, with the names and shapes of before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

_WEIGHT, _PARTS = "weight", ".parametrizations."


class _LowRank(nn.Module):
    """Adds a product of low rank to a weight; 0 before the first step."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=generator) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.active = True

    def forward(self, weight: Float[Tensor, "out ..."]) -> Float[Tensor, "out ..."]:
        """Return the weight with its reserved part, or without."""
        return weight + (self.up @ self.down).view_as(weight) if self.active else weight


def reserve(network: nn.Module, *, rank: int, seed: int) -> None:
    """Give every linear layer and convolution of a network a reserved part, in place.

    Args:
        network: the network.
        rank: of each reserved part, at most that of the weight.
        seed: of the initial factors.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers:
        parametrize.register_parametrization(layer, _WEIGHT, _LowRank(layer.weight, rank, generator))


@contextmanager
def without(network: nn.Module) -> Iterator[None]:
    """Run a network with its general weights alone for the length of the block."""
    parts = [module for module in network.modules() if isinstance(module, _LowRank)]
    for part in parts:
        part.active = False
    try:
        yield
    finally:
        for part in parts:
            part.active = True


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network by the names that they had before `reserve`, each the sum of its parts."""
    found = {name: value for name, value in network.state_dict().items() if _PARTS not in name}
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, _WEIGHT):
            found[f"{name}.{_WEIGHT}"] = layer.weight.detach()
    return found


def merged(network: Any) -> Any:
    """Return a network of diffusers itself without reserved parts, else one of its kind with the merged weights."""
    if not any(isinstance(module, _LowRank) for module in network.modules()):
        return network
    with torch.random.fork_rng(devices=[]):  # torch cannot remove parametrizations of one copy alone
        other = type(network).from_config(network.config)
    other.load_state_dict(merged_state(network))
    return nn.Module.to(other, network.device, network.dtype)  # that of diffusers warns of an empty list of modules
