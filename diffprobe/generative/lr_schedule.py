"""Optimiser of generative training: AdamW with linear warm-up and cosine decay, and the check for a finite loss."""

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
    """Return the factor of the learning rate: linear rise over `warmup` steps, then cosine decay to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def require_finite_loss(loss: Float[Tensor, ""], step: int) -> None:
    """Check a loss before it changes weights and checkpoint.

    Args:
        loss: loss of a batch.
        step: optimiser steps taken so far.
    Raises: NonFinite for NaN or infinity.
    """
    if not torch.isfinite(loss):
        raise NonFinite(
            f"the loss became {float(loss)} after {step} steps.",
            fix="use a smaller trainer.learning_rate, trainer.gradient_clip=1.0, or trainer.precision=32-true",
        )


def total_steps(trainer: TrainerConfig, data: DataConfig, n_samples: int) -> int:
    """Return the optimiser steps of a run: full batches times epochs, limited by `trainer.max_steps` if set."""
    total = trainer.max_epochs * (n_samples // data.batch_size)
    return min(total, trainer.max_steps) if trainer.max_steps > 0 else total


def adamw_with_cosine(
    parameters: Iterable[Any], trainer: TrainerConfig, *, rate: float, beta2: float, warmup: int, total: int
) -> OptimizerLRSchedulerConfig:
    """Build the optimiser and its schedule, in the form that `configure_optimizers` returns.

    Args:
        parameters: parameters, or parameter groups with learning rates of their own.
        trainer: gives the weight decay.
        rate: peak learning rate.
        beta2: AdamW's decay of the mean of squared gradients.
        warmup: warm-up steps.
        total: optimiser steps of the run.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=trainer.weight_decay, betas=(0.9, beta2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
