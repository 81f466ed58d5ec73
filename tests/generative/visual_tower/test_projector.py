"""The projector against its definition, and the order of interleaved tokens."""

import pytest
import torch
from torch.nn import functional

from diffprobe.core.errors import ConfigError
from diffprobe.generative.visual_tower.projector import (
    DiffusionProjector,
    interleave,
    require_equal_counts,
    tokens_of_map,
)


def test_parameters_at_the_papers_sizes_are_those_counted_by_hand() -> None:
    with torch.device("meta"):
        projector = DiffusionProjector(1280, 1024, 4096)
    convolutions = (1280 * 9 + 1) * 1024 + (1024 * 9 + 1) * 1024
    linear = (1024 + 1) * 4096 + (4096 + 1) * 4096
    assert sum(p.numel() for p in projector.reduce.parameters()) == convolutions == 21_235_712
    assert sum(p.numel() for p in projector.parameters()) == convolutions + linear == 42_215_424


def test_a_map_of_the_papers_size_makes_256_tokens_of_the_language_models_width() -> None:
    projector = DiffusionProjector(4, 3, 5)
    assert projector(torch.randn(2, 4, 32, 32)).shape == (2, tokens_of_map((32, 32)), 5) == (2, 256, 5)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4), (8, 8)])
def test_the_number_of_tokens_is_that_of_the_map(size: tuple[int, int]) -> None:
    assert DiffusionProjector(2, 3, 4)(torch.randn(1, 2, *size)).shape[1] == tokens_of_map(size)


def test_the_tokens_are_those_of_the_plain_functions() -> None:
    projector, maps = DiffusionProjector(4, 3, 5), torch.randn(2, 4, 6, 6)
    first, _, second = projector.reduce
    one, _, two = projector.project
    inner = functional.gelu(functional.conv2d(maps, first.weight, first.bias, padding=1))
    reduced = functional.conv2d(inner, second.weight, second.bias, padding=1, stride=2)
    for row in range(3):
        for column in range(3):
            vector = reduced[:, :, row, column]
            token = functional.gelu(vector @ one.weight.T + one.bias) @ two.weight.T + two.bias
            torch.testing.assert_close(projector(maps)[:, 3 * row + column], token)


def test_clip_and_diffusion_tokens_alternate() -> None:
    clip, diffusion = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    both = interleave(clip, diffusion)
    assert both.shape == (2, 14, 3)
    for i in range(7):
        assert torch.equal(both[:, 2 * i], clip[:, i]) and torch.equal(both[:, 2 * i + 1], diffusion[:, i])


def test_other_numbers_of_tokens_are_refused_with_both_numbers() -> None:
    require_equal_counts(256, 256)
    with pytest.raises(ConfigError, match=r"576.*256"):
        require_equal_counts(576, 256)
