import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.inputs import JOINT, by_channel, joined, maps_of, n_values, plan_inputs, reads

GRID, NONE, MEAN = "mid_block@t10:empty:grid2", "up@t20:empty:none", "mid_block@t10:empty:mean"
WIDTHS, SIZES = {GRID: 12, NONE: 2}, {NONE: (3, 4)}
SHAPES = {GRID: (3, 2, 2), NONE: (2, 3, 4)}


def test_each_head_says_what_it_reads():
    assert [reads(name) for name in ("linear", "knn", "mlp", "batchnorm_linear")] == ["vector"] * 4
    assert [reads(name) for name in ("diff_c", "attentive")] == ["map", "map"]
    assert (reads("difformer"), reads("hyperfeatures")) == ("maps", "cells")


def test_heads_of_one_map_have_an_input_per_cell_and_joint_heads_one():
    assert plan_inputs("linear", WIDTHS, SIZES) == {GRID: None, NONE: None}
    assert plan_inputs("diff_c", WIDTHS, SIZES) == {cell: {cell: shape} for cell, shape in SHAPES.items()}
    assert plan_inputs("difformer", WIDTHS, SIZES) == {JOINT: SHAPES}
    assert plan_inputs("difformer", {GRID: 12}, {}) == {GRID: {GRID: (3, 2, 2)}}
    assert plan_inputs("hyperfeatures", {MEAN: 5, NONE: 2}, SIZES) == {JOINT: {MEAN: (5, 1, 1), NONE: (2, 3, 4)}}


@pytest.mark.parametrize("name", ["diff_c", "attentive", "difformer"])
@pytest.mark.parametrize("pool", ["mean", "max", "tokens4"])
def test_features_without_places_are_refused_by_name(name, pool):
    cell = f"mid_block@t10:empty:{pool}"
    with pytest.raises(ConfigError, match=rf"'{name}' reads maps.*'{cell}'") as caught:
        plan_inputs(name, {cell: 5}, {})
    assert "features.pool=none" in str(caught.value) and "gridK" in str(caught.value)


def test_maps_are_joined_and_taken_apart():
    maps = {cell: torch.randn(5, *shape) for cell, shape in SHAPES.items()}
    x = joined(maps, SHAPES)
    assert x.shape == (5, n_values(SHAPES)) == (5, 36)
    assert all(part.equal(maps[cell]) for cell, part in maps_of(x, SHAPES).items())
    assert joined({**maps, GRID: maps[GRID].flatten(1)}, SHAPES).equal(x)  # as pooling writes a grid
    draws = {**maps, NONE: torch.randn(5, 2, 2, 3, 4)}
    with pytest.raises(ConfigError, match=r"up@t20.*\(2, 2, 3, 4\).*\(2, 3, 4\)"):
        joined(draws, SHAPES)


def test_maps_are_standardised_by_channel():
    generator = torch.Generator().manual_seed(0)
    maps = {cell: 7 + 3 * torch.randn(50, *shape, generator=generator).double() for cell, shape in SHAPES.items()}
    x = joined(maps, SHAPES)
    mean, variance = by_channel(x.mean(0), x.var(0, unbiased=False), SHAPES)
    for found, cell in zip(maps_of(mean[None], SHAPES).values(), SHAPES, strict=True):
        expected = maps[cell].mean((0, 2, 3))
        torch.testing.assert_close(found[0], expected[:, None, None].expand(SHAPES[cell]))
    for found, cell in zip(maps_of(variance[None], SHAPES).values(), SHAPES, strict=True):
        expected = maps[cell].var((0, 2, 3), unbiased=False)
        torch.testing.assert_close(found[0], expected[:, None, None].expand(SHAPES[cell]))
