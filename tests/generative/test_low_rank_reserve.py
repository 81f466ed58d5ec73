"""Reserved weights: nothing changes at first, what a step changes, and merged and copied networks."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import modeling_utils
from torch import nn

from diffprobe.generative.low_rank_reserve import merged, merged_state, reserve, without


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6 * 16, 5))


def inputs() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def stepped(rank: int = 2) -> nn.Sequential:
    found = network()
    reserve(found, rank=rank, seed=0)
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        found(inputs()).square().sum().backward()
        optimizer.step()
    return found


def test_nothing_changes_before_the_first_step() -> None:
    plain, other = network(), network()
    state = torch.get_rng_state()
    reserve(other, rank=2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(plain(inputs()), other(inputs()))


def test_a_weight_is_the_sum_of_its_parts() -> None:
    found = stepped()
    layer = found[0].parametrizations.weight
    part = (layer[0].up @ layer[0].down).view(6, 3, 3, 3)
    assert layer[0].up.shape == (6, 2) and bool(part.any())
    torch.testing.assert_close(found[0].weight, layer.original + part)
    everything = found(inputs())
    with without(found):
        assert torch.equal(found[0].weight, layer.original)
        assert not torch.allclose(found(inputs()), everything)
    assert torch.equal(found(inputs()), everything)


def test_a_rank_above_that_of_a_weight_is_that_of_the_weight() -> None:
    assert stepped(rank=99)[3].parametrizations.weight[0].down.shape == (5, 96)


def test_merged_weights_have_the_names_of_before_and_give_the_same_output() -> None:
    found, other = stepped(), network()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    state = merged_state(found)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in other.state_dict().items()
    }
    other.load_state_dict(state)
    torch.testing.assert_close(other(inputs()), found(inputs()))
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())
    assert merged(other) is other


def test_a_copy_has_reserved_weights_of_its_own() -> None:
    found = stepped()
    other = deepcopy(found)
    with without(other):
        assert torch.equal(found(inputs()), stepped()(inputs()))
    assert torch.equal(other(inputs()), found(inputs()))


def test_a_merged_network_of_diffusers_has_the_same_output_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", warnings.append)
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    reserve(unet, rank=2, seed=0)
    for parameter in unet.parameters():
        parameter.data += 0.01
    arguments = (torch.ones(1, 2, 4, 4), torch.tensor([3]), torch.ones(1, 1, 8))
    other = merged(unet)
    torch.testing.assert_close(other(*arguments).sample, unet(*arguments).sample)
    assert not warnings
