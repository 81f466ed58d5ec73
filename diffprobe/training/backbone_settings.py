"""Which settings of the runs that train a backbone are refused: values out of range, and a key that would do nothing.

Asked when a configuration is made, before anything is loaded.
"""

from typing import Any

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError


def require_settings(config: Any, *, shares: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Judge a run's own keys, those that all such runs have (data, warmup_steps, ema_decay) among them.

    Args:
        config: the run's configuration.
        shares: further keys that lie in 0..1.
        not_negative: further keys that are at least 0.
    Raises: ConfigError.
    """
    if not 0 <= config.ema_decay < 1:
        raise ConfigError(
            f"ema_decay={config.ema_decay} is out of range: 0 to 1, without 1.",
            "at 1 the average would never learn of a step; 0 saves the last weights as they are",
        )
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)} is no share: 0 to 1.")
    for name in ("warmup_steps", *not_negative):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)} is out of range: at least 0.")
    default = DataConfig(path="").shuffle_buffer
    if config.data.shuffle_buffer != default:  # it orders a stream; here a split is decoded once and kept in memory
        raise ConfigError(
            f"data.shuffle_buffer={config.data.shuffle_buffer} does nothing here.",
            f"every epoch shuffles the whole split; leave the key unset ({default})",
        )
