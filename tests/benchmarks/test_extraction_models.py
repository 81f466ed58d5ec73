from pathlib import Path

import pytest
import torch

from diffprobe.backbones.taps import list_taps
from diffprobe.benchmarks.extraction_models import SIZES, pooled, write_model


@pytest.mark.parametrize("name", ["small", "small-dit", "small-mmdit"])
def test_a_model_has_the_taps_that_are_read(name: str, tmp_path: Path) -> None:
    shape = SIZES[name]
    taps = [tap.path for tap in list_taps(str(write_model(tmp_path, shape, 32)), resolution=32, inner=True)]
    read = [taps.index(tap) for tap in (*shape.grid, shape.end)]
    assert read == sorted(read) and shape.one in taps and len(shape.grid) == 4


@pytest.mark.parametrize("name", ["dit", "mmdit"])
def test_the_taps_of_a_transformer_are_in_its_first_two_thirds(name: str) -> None:
    shape = SIZES[name]
    numbers = [int(tap.rpartition(".")[2]) + 1 for tap in (shape.one, *shape.grid)]
    assert numbers == [shape.layers // 2, *(i * shape.layers // 6 for i in (1, 2, 3, 4))]


def test_the_mean_of_a_tap_is_over_its_places() -> None:
    tokens, grid = torch.randn(2, 6, 3), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(pooled(SIZES["dit"], tokens), tokens.mean(1))
    torch.testing.assert_close(pooled(SIZES["mmdit"], (torch.zeros(2, 5, 3), tokens)), tokens.mean(1))
    torch.testing.assert_close(pooled(SIZES["sd15"], (grid, ())), grid.mean((2, 3)))
    torch.testing.assert_close(pooled(SIZES["sd15"], grid), grid.mean((2, 3)))
