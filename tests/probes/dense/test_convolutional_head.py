"""The convolutional head: reads what lies beside a place, depends on its seed alone, and refuses what does not fit."""

import pytest
import torch
from torch.nn.functional import one_hot

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.dense.convolutional_head import ConvolutionalHead, fit_convolutional_head


def planted(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return maps whose sign at a place is the class of the place to its right, the shares, and the classes."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(n, 3, 6, 6, generator=generator)
    classes = (maps[:, 0].roll(1, 2) > 0).long()
    classes[:, :, 0] = 0  # nothing lies to the left of the border
    return maps, one_hot(classes, 2).permute(0, 3, 1, 2).float(), classes


def hits(head: ConvolutionalHead, maps: torch.Tensor, classes: torch.Tensor) -> float:
    found = torch.stack([head.predict(one, (6, 6)) for one in maps])
    return float((found == classes).float().mean())


def test_neighbours_are_read_and_other_truth_is_not() -> None:
    maps, shares, classes = planted()
    head = fit_convolutional_head(maps[:32], shares[:32], steps=100, lr=3e-2, seed=0)
    assert hits(head, maps[32:], classes[32:]) > 0.85  # places alone: about .58
    other = fit_convolutional_head(maps[:32], shares[:32].roll(1, 0), steps=100, lr=3e-2, seed=0)
    assert hits(other, maps[32:], classes[32:]) < 0.75
    assert head.predict(maps[0], (24, 24)).shape == (24, 24)
    assert not any(one.requires_grad for one in head.layers.parameters())


def test_the_seed_decides_and_the_state_of_the_caller_stays() -> None:
    maps, shares, _ = planted()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = fit_convolutional_head(maps, shares, steps=5, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    same, other = (fit_convolutional_head(maps, shares, steps=5, seed=seed) for seed in (0, 1))
    weights = [next(head.layers.parameters()) for head in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_bad_input() -> None:
    maps, shares, _ = planted(4)
    with pytest.raises(ConfigError, match="steps=0"):
        fit_convolutional_head(maps, shares, steps=0, seed=0)
    with pytest.raises(ConfigError, match=r"\(4, 3, 6, 6\).*\(3, 2, 6, 6\)"):
        fit_convolutional_head(maps, shares[:3], seed=0)
    with pytest.raises(NonFinite):
        fit_convolutional_head(maps / 0, shares, seed=0)


def test_the_known_part_of_the_truth_decides() -> None:
    maps, shares, _ = planted(8)
    whole = fit_convolutional_head(maps, shares, steps=5, seed=0)
    half = fit_convolutional_head(maps, shares / 2, steps=5, seed=0)
    assert torch.allclose(half.layers[0].weight, whole.layers[0].weight, atol=1e-6)
    known = shares.clone()
    known[:, :, 3:] = 0
    far = maps.clone()
    far[:, :, 5] = maps[:, :, 5].flip(0)  # the same moments, and no neighbour of a known place
    one, two = (fit_convolutional_head(each, known, steps=5, seed=0) for each in (maps, far))
    assert torch.allclose(one.layers[0].weight, two.layers[0].weight, atol=1e-6)
    assert not torch.allclose(one.layers[0].weight, whole.layers[0].weight, atol=1e-3)
