import pytest
import torch
import torch.nn.functional as F

from diffprobe.core.errors import EmptyClass
from diffprobe.probes.direction.mean_difference import mean_difference


def planted(n=600, d=20, shift=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axis = F.normalize(torch.randn(d, generator=generator), dim=0)
    positive = torch.rand(n, generator=generator) > 0.6
    x = torch.randn(n, d, generator=generator) + shift * positive[:, None] * axis + 40
    return x, positive, axis


def test_finds_a_planted_axis_and_ignores_shifts():
    x, positive, axis = planted(n=20_000)
    found = mean_difference(x, positive)
    assert float(F.cosine_similarity(found.float(), axis, dim=0)) > 0.99
    torch.testing.assert_close(mean_difference(x.double() - 11, positive), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean_difference(x, ~positive), -found)


def test_an_empty_side_is_an_error():
    with pytest.raises(EmptyClass, match="0 negative"):
        mean_difference(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
