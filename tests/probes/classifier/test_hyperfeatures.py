import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.base import make_head
from diffprobe.probes.classifier.hyperfeatures import Bottleneck, Config
from diffprobe.probes.classifier.inputs import joined, n_values

SMALL = Config(width=16, groups=2, size=4)
SHAPES = {f"{tap}@t{t}:empty:none": shape for t in (9, 90) for tap, shape in (("mid", (3, 2, 2)), ("up", (2, 4, 4)))}
NAMES = list(SHAPES)


def head():
    return make_head("hyperfeatures", SMALL, n_values(SHAPES), 5, seed=0, shapes=SHAPES)


def test_it_is_the_weighted_sum_of_bottlenecks_shared_over_timesteps():
    mixture = head()
    with torch.no_grad():
        mixture.mixing.copy_(torch.randn(4))
    maps = {cell: torch.randn(3, *shape) for cell, shape in SHAPES.items()}
    weights = mixture.mixing.softmax(0)
    total = 0
    for i, cell in enumerate(NAMES):
        x = F.interpolate(maps[cell], size=(4, 4), mode="bilinear", align_corners=False)
        total = total + weights[i] * mixture.bottlenecks["up" in cell](x)
    expected = total.mean((2, 3)) @ mixture.linear.weight.T + mixture.linear.bias
    torch.testing.assert_close(mixture(joined(maps, SHAPES)), expected, rtol=1e-5, atol=1e-5)
    assert len(mixture.bottlenecks) == 2 and sum(mixture.mixture().values()) == pytest.approx(1)


@pytest.mark.parametrize("index", range(4))
def test_one_hot_mixing_is_that_layer(index):
    mixture = head()
    with torch.no_grad():
        mixture.mixing.fill_(-torch.inf)
        mixture.mixing[index] = 0.0
    maps = {cell: torch.randn(3, *shape) for cell, shape in SHAPES.items()}
    cell = NAMES[index]
    x = F.interpolate(maps[cell], size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mixture.mixed(joined(maps, SHAPES)), mixture.bottlenecks["up" in cell](x))
    others = {name: values if name == cell else torch.randn_like(values) for name, values in maps.items()}
    assert mixture(joined(others, SHAPES)).equal(mixture(joined(maps, SHAPES)))


def test_the_bottleneck_of_the_paper():
    with torch.device("meta"):
        block = Bottleneck(1280, Config())
    convolutions = 1280 * 384 + 1280 * 96 + 96 * 96 * 9 + 96 * 384
    assert sum(p.numel() for p in block.parameters()) == convolutions + 2 * (384 + 96 + 96 + 384)
    same = Bottleneck(16, SMALL)
    x = torch.randn(3, 16, 4, 4)
    torch.testing.assert_close(same(x), (same.path(x) + x).relu())


def test_values_out_of_range():
    with pytest.raises(ConfigError, match="groups=32.*width=100"):
        Config(width=100)
    with pytest.raises(ConfigError, match="size=0"):
        Config(size=0)
    shapes = {"mid@t9:empty:none": (3, 2, 2), "mid@t90:empty:none": (4, 2, 2)}
    with pytest.raises(ConfigError, match="'mid'"):
        make_head("hyperfeatures", SMALL, 28, 5, seed=0, shapes=shapes)
