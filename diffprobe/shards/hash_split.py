"""Assign samples to splits by a hash of their key or group, so that a split depends on names alone.

Neither the order of the samples nor other samples matter: images that are added later leave the others where they are.
"""

import hashlib
import math

from diffprobe.core.errors import ConfigError


def hash_fraction(purpose: str, text: str) -> float:
    """Map a text to [0, 1), evenly, by its sha256; different purposes are independent.

    >>> round(hash_fraction("split", "cat/001"), 3)
    0.319
    """
    return int.from_bytes(hashlib.sha256(f"{purpose}|{text}".encode()).digest()[:8], "big") / 2**64


def check_fractions(*, val: float, test: float) -> None:
    """Raise ConfigError unless both are from 0 and leave something for train."""
    for name, value in (("val", val), ("test", test)):
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ConfigError(f"--{name} {value} is out of range; allowed: 0 to below 1.")
    if val + test >= 1:
        raise ConfigError(f"--val {val} and --test {test} leave nothing for train; their sum must be below 1.")


def split_by_hash(value: str, *, val: float, test: float) -> str:
    """Return the split of all samples with one key or group: train, val or test.

    Args:
        value: the key of the sample, or the group that must not be in two splits.
        val, test: the shares of all values.
    """
    place = hash_fraction("split", value)
    return "test" if place < test else "val" if place < test + val else "train"
