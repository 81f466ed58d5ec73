import pytest
import torch

from diffprobe.backbones.pool import make_pool
from diffprobe.core.errors import ConfigError


def test_poolings_of_a_map_that_can_be_read_off() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, 0.0]]]])
    assert make_pool("mean")(x).tolist() == [[3.0, -0.75]]
    assert make_pool("max")(x).tolist() == [[6.0, 0.0]]
    assert torch.equal(make_pool("none")(x), x)


def test_low_precision_is_averaged_in_float32() -> None:
    x = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 257 - 1  # 4095 ones and one 256: no bfloat16 sum could hold it
    assert make_pool("mean")(x).item() == pytest.approx((4095 + 256) / 4096, abs=1e-6)


def test_a_kept_map_is_a_copy() -> None:
    x = torch.zeros(1, 1, 2, 2)
    kept = make_pool("none")(x)
    x += 1
    assert float(kept.sum()) == 0


def test_an_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="mean, max, none"):
        make_pool("sum")
