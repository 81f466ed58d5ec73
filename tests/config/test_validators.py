import pytest

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError


def test_numbers_are_reported_by_their_keys() -> None:
    at_least(1, limit=None, draws=1, rate=1.5)
    with pytest.raises(ConfigError, match="draws=0 is out of range: at least 1"):
        at_least(1, limit=None, draws=0)
    with pytest.raises(ConfigError, match="rate=nan"):
        at_least(0, rate=float("nan"))


def test_devices_have_torchs_names() -> None:
    for name in ("auto", "cpu", "cuda", "cuda:0", "mps", "xpu:1"):
        a_device(name)
    for name in ("gpu", "tpu", "cuda:", "cuda:x", "CPU", ""):
        with pytest.raises(ConfigError, match=f"device={name} "):
            a_device(name)
    with pytest.raises(ConfigError, match="fix: --device=cuda"):
        a_device("gpu", "--device")
