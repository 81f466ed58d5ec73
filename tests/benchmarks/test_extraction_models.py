from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.backbones.taps import list_taps
from diffprobe.benchmarks.extraction_models import SIZES, pooled, write_model


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("small")])
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


@pytest.mark.slow
def test_the_large_models_have_the_parameters_of_the_published_ones(tmp_path: Path) -> None:
    import diffusers

    found = {}
    for name, kind in (("sdxl", "UNet2DConditionModel"), ("flux", "FluxTransformer2DModel")):
        shape = replace(SIZES[name], vae=SIZES["small"].vae, text=(SIZES[name].text[0], 1, 8), t5=4096)
        folder = write_model(tmp_path / name, replace(shape, t5=64) if name == "flux" else shape, 512)
        part = folder / ("unet" if name == "sdxl" else "transformer")
        with torch.device("meta"):
            made: Any = getattr(diffusers, kind)
            network = made.from_config(made.load_config(part))
        found[name] = sum(p.numel() for p in network.parameters()) / 1e9
    assert found["sdxl"] == pytest.approx(2.567, abs=0.005)  # diffusers' U-Net of SDXL; less for the pooled text
    assert found["flux"] + (4096 - 64) * 3072 / 1e9 == pytest.approx(11.9, abs=0.05)


def test_the_mean_of_a_tap_is_over_its_places() -> None:
    tokens, grid = torch.randn(2, 6, 3), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(pooled(SIZES["dit"], tokens), tokens.mean(1))
    torch.testing.assert_close(pooled(SIZES["mmdit"], (torch.zeros(2, 5, 3), tokens)), tokens.mean(1))
    torch.testing.assert_close(pooled(SIZES["flux"], (torch.zeros(2, 5, 3), tokens)), tokens.mean(1))
    torch.testing.assert_close(pooled(SIZES["sdxl"], (grid, ())), grid.mean((2, 3)))
    torch.testing.assert_close(pooled(SIZES["sd15"], (grid, ())), grid.mean((2, 3)))
    torch.testing.assert_close(pooled(SIZES["sd15"], grid), grid.mean((2, 3)))
