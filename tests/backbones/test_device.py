"""Devices by name, and float32 that is float32."""

import pytest
import torch

from diffprobe.backbones.device import choose_device, exact
from diffprobe.core.errors import ConfigError


def test_devices_are_taken_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda:1")


def test_a_surrounding_autocast_does_not_reach_the_backbone() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with exact(torch.device("cpu"), "float32"):
            assert (x @ x).dtype == torch.float32
