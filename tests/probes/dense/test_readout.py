"""The linear readout: recovers planted classes, whatever the order of images and the scale of channels."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.dense.readout import class_shares, fit_readout


def planted(n: int = 8) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (n, 6, 6), generator=generator)
    maps = torch.randn(n, 5, 6, 6, generator=generator)
    maps[:, 1] += 6 * (truth == 1)
    maps[:, 2] += 6 * (truth == 2)
    return maps, list(truth)


def test_planted_classes_are_read_in_any_order_and_scale() -> None:
    maps, truth = planted()
    one = fit_readout(maps[:6], truth[:6], 3, l2=1e-3, steps=100, seed=0)
    hits = [(one.predict(maps[i], (6, 6)) == truth[i]).float().mean() for i in (6, 7)]
    assert min(hits) > 0.9
    scale = torch.tensor([1.0, 50.0, 0.1, 3.0, 1.0])[:, None, None]
    other = fit_readout((maps[:6] * scale + 4).flip(0), truth[:6][::-1], 3, l2=1e-3, steps=100, seed=0)
    assert torch.equal(one.predict(maps[7], (6, 6)), other.predict(maps[7] * scale + 4, (6, 6)))


def test_predictions_have_the_size_of_the_truth() -> None:
    maps, truth = planted()
    large = [one.repeat_interleave(4, 0).repeat_interleave(4, 1) for one in truth]
    readout = fit_readout(maps, large, 3, l2=1e-3, steps=100, seed=0)
    assert torch.equal(class_shares(large[0], 3, (6, 6)).argmax(0), truth[0])
    assert readout.predict(maps[0], (24, 24)).shape == (24, 24)
    same = fit_readout(maps, truth, 3, l2=1e-3, steps=100, seed=0)
    assert torch.allclose(readout.weight, same.weight)


def test_the_gradient_at_the_solution_is_zero() -> None:
    maps, truth = planted()
    maps = (maps - maps.mean((0, 2, 3), keepdim=True)) / maps.std((0, 2, 3), correction=0, keepdim=True)
    found = fit_readout(maps, truth, 3, l2=0.1, steps=300, seed=0)
    weight = found.weight.clone().requires_grad_()
    logits = torch.einsum("kc,nchw->nkhw", weight, maps) + found.bias[:, None, None]
    (torch.nn.functional.cross_entropy(logits, torch.stack(truth)) + 0.05 * weight.square().sum()).backward()
    assert weight.grad is not None and float(weight.grad.abs().max()) < 1e-3


def test_bad_maps_are_refused() -> None:
    maps, truth = planted()
    with pytest.raises(ConfigError, match="8 maps, 7"):
        fit_readout(maps, truth[:7], 3, l2=1e-3, steps=5, seed=0)
    with pytest.raises(NonFinite):
        fit_readout(maps * torch.inf, truth, 3, l2=1e-3, steps=5, seed=0)
    with pytest.raises(ConfigError, match="no pixel"):
        fit_readout(maps, [torch.full((6, 6), 255)] * 8, 3, l2=1e-3, steps=5, seed=0)


def test_unknown_pixels_do_not_matter() -> None:
    maps, truth = planted()
    large = [one.repeat_interleave(2, 0).repeat_interleave(2, 1) for one in truth]
    holed = [one.clone() for one in large]
    for one in holed:
        one[::2] = 255  # each place keeps half of its pixels
    whole, part = (fit_readout(maps, one, 3, l2=1e-2, steps=100, seed=0) for one in (large, holed))
    assert torch.allclose(whole.weight, part.weight, atol=1e-4)
    assert class_shares(holed[0], 3, (6, 6)).sum(0).unique().tolist() == [0.5]
    gone = [*truth[:7], torch.full((6, 6), 255)]  # the last image has no known pixel, whatever its features
    other = maps.clone()
    other[7] = 1e3
    one, two = (
        fit_readout(other, gone, 3, l2=1e-2, steps=100, seed=0),
        fit_readout(maps[:7], truth[:7], 3, l2=1e-2, steps=100, seed=0),
    )
    assert torch.allclose(one.weight, two.weight)
