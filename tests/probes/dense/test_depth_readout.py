"""The linear depth readout: against ridge regression of scikit-learn, and what must not change it."""

import math

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.dense.depth_readout import fit_depth_readout, mean_depth


def planted(n: int = 5) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(n, 4, 6, 6, generator=generator)
    truth = 2 + maps[:, 1] - 0.5 * maps[:, 2] + 0.1 * torch.randn(n, 6, 6, generator=generator)
    return maps, list(truth)


def test_it_is_ridge_regression_on_standardised_channels() -> None:
    from sklearn.linear_model import Ridge

    maps, truth = planted()
    rows = maps.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    depth = torch.stack(truth).flatten().double().numpy()
    scaled = (rows - rows.mean(0)) / rows.std(0)
    plain = Ridge(alpha=0.3 * len(rows)).fit(scaled, depth).predict(scaled)
    readout = fit_depth_readout(maps, truth, l2=0.3)
    found = torch.stack([readout.predict(one, (6, 6)) for one in maps]).flatten().numpy()
    assert np.abs(found - plain).max() < 1e-5


def test_order_scale_and_offset_of_channels_do_not_matter() -> None:
    maps, truth = planted()
    one = fit_depth_readout(maps, truth, l2=1e-3)
    scale = torch.tensor([1.0, 50.0, 0.1, 3.0])[:, None, None]
    other = fit_depth_readout((maps * scale + 4).flip(0), truth[::-1], l2=1e-3)
    assert torch.allclose(one.predict(maps[0], (6, 6)), other.predict(maps[0] * scale + 4, (6, 6)), atol=1e-4)


def test_unknown_pixels_do_not_matter() -> None:
    maps, truth = planted()
    large = [one.repeat_interleave(2, 0).repeat_interleave(2, 1) for one in truth]
    holed = [one.clone() for one in large]
    for one in holed:
        one[::2] = math.nan  # each place keeps half of its pixels
    whole, part = fit_depth_readout(maps, large, l2=1e-3), fit_depth_readout(maps, holed, l2=1e-3)
    assert torch.allclose(whole.weight, part.weight)
    depth, share = mean_depth(holed[0], (6, 6))
    assert torch.allclose(depth.float(), truth[0], atol=1e-6)
    assert share.unique().tolist() == [0.5]
    assert whole.predict(maps[0], (24, 24)).shape == (24, 24)


def test_bad_input() -> None:
    maps, truth = planted()
    with pytest.raises(ConfigError, match=r"5 maps, 4 depth maps"):
        fit_depth_readout(maps, truth[:4], l2=1)
    with pytest.raises(ConfigError, match="l2=0"):
        fit_depth_readout(maps, truth, l2=0)
    with pytest.raises(ConfigError, match="no pixel"):
        fit_depth_readout(maps, [torch.full((6, 6), math.nan)] * 5, l2=1)
    with pytest.raises(NonFinite):
        fit_depth_readout(maps / 0, truth, l2=1)
