"""Checks shared by several dataclasses of settings. Whether a device exists is checked when it is used."""

import re

from diffprobe.core.errors import ConfigError

_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu)(:\d+)?")


def at_least(minimum: int, **values: int | float | None) -> None:
    """Raise ConfigError for a value below `minimum`, by the name of its key; None is allowed.

    >>> at_least(1, limit=None, draws=2)
    """
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ConfigError(f"{name}={value} is out of range: at least {minimum}.")


def a_device(name: str, key: str = "device") -> None:
    """Raise ConfigError for a text that does not name a torch device.

    >>> a_device("cuda:1")
    """
    if not _DEVICE.fullmatch(name):
        fix = f"{key}=cuda" if name.startswith("gpu") else None
        raise ConfigError(f"{key}={name} is not a device.", "allowed: auto, cpu, cuda, cuda:1, mps, xpu", fix=fix)
