import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.caption.mlp import Config, loss, make


def test_the_loss_is_the_share_of_the_variance_that_is_missed():
    module = torch.nn.Identity()
    x, y = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    assert float(loss(module, x, y, torch.tensor([0.75, 0.25]))) == pytest.approx((0.75 + 1.0 + 0.75) / 2)


def test_the_map_has_one_hidden_layer():
    found = make(Config(hidden=9), 3, 2, seed=0)
    assert [tuple(part.shape) for part in found.parameters()] == [(9, 3), (9,), (2, 9), (2,)]


def test_a_width_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="hidden=0"):
        Config(hidden=0)
