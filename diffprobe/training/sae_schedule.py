"""What a Trainer's settings mean to a sparse autoencoder: precisions it refuses, its step size, too short a run.

Free of torch, so that it can be asked before anything is loaded.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError

if TYPE_CHECKING:
    from diffprobe.probes.sae.types import Config

RISE = 0.05
"""Share of a run in which the step size rises where `warmup_steps` is not given."""


def check_precision(settings: TrainerConfig) -> None:
    """Refuse precisions that would keep the weights, and the scale and thresholds beside them, in 16 bits.

    Raises: ConfigError.
    """
    if settings.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision={settings.precision} would round an autoencoder's weights, scale and thresholds: "
            "small steps of the optimiser would be lost, and what is saved is not what 32 bits give.",
            "allowed for autoencoders: 32-true, 64-true, and with 32-bit weights bf16-mixed, 16-mixed",
            fix="trainer.precision=bf16-mixed",
        )


def step_size_factor(config: "Config", total: int) -> Callable[[float], float]:
    """Return the factor of the step size at a progress of 0 to 1 over the `total` steps of a run.

    It rises to 1 in `warmup_steps` equal parts, the first of which is the first step's, and falls to 0 over the last
    `decay` of the run.

    >>> from diffprobe.probes.sae.types import Config
    >>> factor = step_size_factor(Config(warmup_steps=4, decay=0.5), 10)
    >>> [round(factor(step / 10), 2) for step in range(11)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    """
    warmup = RISE * total if config.warmup_steps is None else config.warmup_steps

    def factor(progress: float) -> float:
        fall = (1 - progress) / config.decay if config.decay > 0 else 1.0
        return min(1.0, (progress * total + 1) / warmup, fall)

    return factor


def warn_of_window(config: "Config", *, n_rows: int, n_trained: int) -> None:
    """Warn if a run is too short for any latent to count as dead.

    Args:
        n_rows: rows of the training set.
        n_trained: rows of all training batches of the run.
    """
    if n_trained >= config.dead_window:
        return
    without_aux = "AuxK never acts and " if config.aux_weight > 0 else ""
    warnings.warn(
        f"a latent counts as dead after probe.params.dead_window={config.dead_window} rows without activity; this run "
        f"trains on {n_trained} ({n_rows} a pass), so {without_aux}no windowed_dead_fraction is recorded. "
        f"A window that fits: probe.params.dead_window={max(1, min(4 * n_rows, n_trained // 2))}",
        stacklevel=2,
    )
