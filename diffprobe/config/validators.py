"""Checks that several blocks of settings share. No torch; what a machine really has is judged when it is used."""

import re

from diffprobe.core.errors import ConfigError

_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu)(:\d+)?")


def at_least(minimum: int, **values: int | float | None) -> None:
    """Check numbers by the names of their keys; None passes. Raises: ConfigError.

    >>> at_least(1, limit=None, draws=2)
    """
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ConfigError(f"{name}={value} is out of range: at least {minimum}.")


def a_device(name: str, key: str = "device") -> None:
    """Check the name of a torch device. Raises: ConfigError.

    >>> a_device("cuda:1")
    """
    if not _DEVICE.fullmatch(name):
        fix = f"{key}=cuda" if name.startswith("gpu") else None
        raise ConfigError(f"{key}={name} is no device.", "allowed: auto, cpu, cuda, cuda:1, mps, xpu", fix=fix)
