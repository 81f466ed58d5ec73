"""The optimizer of the networks that are trained from images and texts: AdamW, a linear warm-up, a cosine to 0.

Owns what stops such a run too: a loss that is no number.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.config.schema import DataConfig, TrainerConfig
from diffprobe.core.errors import NonFinite


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the step size: linear rise over `warmup` steps, then a cosine that reaches 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def require_finite_loss(loss: Float[Tensor, ""], step: int) -> None:
    """Stop before a loss that is no number reaches weights and checkpoint.

    Args:
        loss: of a batch.
        step: optimiser steps taken so far.
    Raises: NonFinite.
    """
    if not torch.isfinite(loss):
        raise NonFinite(
            f"the loss became {float(loss)} after {step} steps.",
            fix="a smaller trainer.learning_rate, trainer.gradient_clip=1.0, or trainer.precision=32-true",
        )


def total_steps(trainer: TrainerConfig, data: DataConfig, n_samples: int) -> int:
    """Optimiser steps of a run: whole batches times epochs, and `trainer.max_steps` at most if that is set."""
    total = trainer.max_epochs * (n_samples // data.batch_size)
    return min(total, trainer.max_steps) if trainer.max_steps > 0 else total


def adamw_with_cosine(
    parameters: Iterable[Any], trainer: TrainerConfig, *, rate: float, beta2: float, warmup: int, total: int
) -> OptimizerLRSchedulerConfig:
    """Return what `configure_optimizers` returns.

    Args:
        parameters: parameters, or groups of them with a step size of their own.
        trainer: gives the weight decay.
        rate: largest step size.
        beta2: decay a step of the mean of squared gradients.
        warmup: steps over which the step size rises.
        total: steps of the run.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=trainer.weight_decay, betas=(0.9, beta2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
