"""Fit a small module to data in memory: full-batch L-BFGS, for `fit(x, y)` of probes without a Trainer."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError, NonFinite

Array = Tensor | np.ndarray[Any, Any]
"""What `fit`, `predict` and `score` take: tensors or numpy arrays."""
Module = TypeVar("Module", bound=nn.Module)


def as_features(x: Array) -> Float[Tensor, "samples d_in"]:
    """Return features as a floating-point matrix. Raises: ConfigError for what is not one, NonFinite for NaN."""
    found = _as_tensor(x, "features")
    if found.ndim != 2 or len(found) == 0:
        raise ConfigError(f"features have shape {tuple(found.shape)}; expected (samples, d_in).")
    found = found if found.is_floating_point() else found.float()
    bad = ~torch.isfinite(found).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NonFinite(f"{int(bad.sum())} of {len(found)} samples have NaN or infinity; the first is row {first}.")
    return found


def as_labels(y: Array, n: int) -> Tensor:
    """Return one label per sample. Raises: ConfigError if they are not `n` integers or booleans."""
    found = _as_tensor(y, "labels")
    if found.shape != (n,) or found.is_floating_point() or found.is_complex():
        raise ConfigError(
            f"labels have shape {tuple(found.shape)} and type {found.dtype}; expected {n} integers or booleans."
        )
    return found


def _as_tensor(values: Array, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{what} are not an array of numbers: {' '.join(str(error).split())[:200]}.",
            *([] if what == "features" else ["labels are class ids from 0, -1 for none; names have to be numbered"]),
        ) from error


def fit_full_batch(module: Module, loss: Callable[[Module], Tensor], *, l2: float, max_steps: int) -> Module:
    """Minimise `loss(module)` plus a penalty on its weights by L-BFGS with a strong Wolfe line search, in float64.

    There is no sampling, so the result depends on the initial weights and the data alone.

    Args:
        module: changed in place; its dtype and mode (train or eval) are restored afterwards.
        loss: mean loss over the data, which must be float64 too.
        l2: strength of the penalty l2 / 2 * sum(w^2) over the weight matrices; biases are not penalised.
        max_steps: largest number of L-BFGS iterations; fewer where the largest gradient falls below 1e-8.

    Raises: ConfigError for l2 below 0 or max_steps below 1, NonFinite if the loss diverges.
    """
    if l2 < 0 or max_steps < 1:
        raise ConfigError(f"l2={l2}, max_steps={max_steps}: l2 must be at least 0 and max_steps at least 1.")
    dtype, training = next(module.parameters()).dtype, module.training
    module.double().train()
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=max_steps,
        max_eval=4 * max_steps,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(module)
        for weight in module.parameters():
            if weight.ndim > 1:
                value = value + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()
    module.to(dtype).train(training)
    if not all(torch.isfinite(weight).all() for weight in module.parameters()):
        raise NonFinite("the fit diverged: a weight is NaN or infinite.", fix="a larger l2")
    return module
