import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier import attentive, difformer
from diffprobe.probes.classifier.base import make_head
from diffprobe.probes.classifier.inputs import joined, n_values

SMALL = {"width": 12, "heads": 3, "places": 4}
SHAPES = {f"{tap}@t{t}:empty:none": shape for t in (9, 90) for tap, shape in (("mid", (3, 2, 2)), ("up", (2, 3, 4)))}


def test_with_one_cell_it_is_the_attention_head():
    one = {"mid@t9:empty:none": (3, 2, 2)}
    heads = [
        make_head(name, file.Config(**SMALL), 12, 5, seed=4, shapes=one)
        for name, file in (("attentive", attentive), ("difformer", difformer))
    ]
    x = torch.randn(6, 12)
    assert heads[0](x).equal(heads[1](x))
    assert heads[0].state_dict().keys() == heads[1].state_dict().keys()


def test_taps_of_a_timestep_are_pooled_together_and_timesteps_side_by_side():
    head = make_head("difformer", difformer.Config(**SMALL), n_values(SHAPES), 5, seed=0, shapes=SHAPES)
    maps = {cell: torch.randn(4, *shape) for cell, shape in SHAPES.items()}
    pool, (mid, up) = head.maps.pool, head.maps.tokens
    pooled = [pool(torch.cat([mid(maps[f"mid@t{t}:empty:none"]), up(maps[f"up@t{t}:empty:none"])], 1)) for t in (9, 90)]
    expected = torch.cat(pooled, 1) @ head.maps.linear.weight.T + head.maps.linear.bias
    torch.testing.assert_close(head(joined(maps, SHAPES)), expected, rtol=1e-5, atol=1e-5)


def test_all_parts_learn():
    head = make_head("difformer", difformer.Config(**SMALL), n_values(SHAPES), 5, seed=0, shapes=SHAPES)
    head(torch.randn(4, n_values(SHAPES))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_maps_of_a_tap_have_one_shape():
    shapes = {"mid@t9:empty:none": (3, 2, 2), "mid@t90:empty:none": (3, 4, 4)}
    with pytest.raises(ConfigError, match=r"'mid'.*\(3, 2, 2\).*\(3, 4, 4\)"):
        difformer.make(difformer.Config(**SMALL), shapes, 5, seed=0)
