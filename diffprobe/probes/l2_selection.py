"""Choose the L2 penalty of a linear classifier by grouped cross-validation, and refit on all samples. Pure torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.grouped_folds import Folds
from diffprobe.probes.softmax_regression import GAP, Problems, Solutions, class_weights, solve

DEFAULT_PATH = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties on the weights of standardised features, beside a mean cross entropy in nats."""


@dataclass(frozen=True)
class Task:
    """One target: labels of all samples, and their folds."""

    labels: NDArray[np.int64]
    """Class ids from 0, -1 for none (samples)."""
    folds: Folds
    """Folds of the samples."""


@dataclass(frozen=True)
class Chosen:
    """One tuned classifier and how its penalty was chosen."""

    weight: Float[Tensor, "n_classes d_in"]
    """Weights for features in their own unit, float64."""
    bias: Float[Tensor, " n_classes"]
    """Offsets; -inf for a class without a sample."""
    l2: float
    """The chosen penalty."""
    at_edge: bool
    """Whether it is an end of the path, so that the best penalty may lie outside."""
    path: tuple[float, ...]
    """The penalties, largest first."""
    log_loss: tuple[float, ...]
    """Cross-validated log-loss per penalty, nats; class-balanced where the fit is."""
    standard_error: tuple[float, ...]
    """Standard error of each over the folds."""
    n_unscored: int
    """Samples whose class the fold that holds them out could not learn; they are not in `log_loss`."""
    gap: float
    """Upper bound of the distance of the refit from its minimum, nats."""
    gradient_norm: float
    """Gradient norm of the refit."""
    converged: bool
    """Whether the refit and all regressions of the path reached the gap that was asked for."""
    n_steps: int
    """L-BFGS steps of the refit."""


def check_path(path: Sequence[float]) -> tuple[float, ...]:
    """Return a path with the largest penalty first. Raises: ConfigError if it is empty or one is repeated or <= 0."""
    if not path or len(set(path)) < len(path) or not all(0 < l2 < float("inf") for l2 in path):
        raise ConfigError(f"l2={list(path)}: at least one penalty, each above 0 and each once.")
    return tuple(sorted(path, reverse=True))


def choose(log_loss: Sequence[float], standard_error: Sequence[float], *, one_standard_error: bool) -> int:
    """Return the position of the smallest loss; or of the largest penalty whose loss is within its standard error.

    Args:
        log_loss, standard_error: per penalty, the largest penalty first. Of equal losses the first is taken.

    >>> choose([1.0, 0.6, 0.5, 0.7], [0.1] * 4, one_standard_error=True)
    1
    """
    best = int(np.argmin(log_loss))
    if not one_standard_error:
        return best
    limit = log_loss[best] + standard_error[best]
    return next(i for i, loss in enumerate(log_loss) if loss <= limit)


def select_l2(
    features: Float[Tensor, "cells samples d_in"],
    tasks: Sequence[Task],
    *,
    n_classes: int,
    path: Sequence[float] = DEFAULT_PATH,
    balanced: bool = True,
    one_standard_error: bool = False,
    gap: float = GAP,
    dtype: torch.dtype = torch.float64,
) -> list[list[Chosen]]:
    """Tune and fit a classifier for each pair of cell and task, all together, with warm starts along the path.

    Args:
        features: features of the training samples, in any unit; the cells have one width.
        tasks: targets with the same number of classes.
        n_classes: that number.
        path: penalties, see `check_path`.
        balanced: whether classes have equal weight, in the fit and in the log-loss.
        one_standard_error: the largest penalty within one standard error of the best, instead of the best.
        gap, dtype: see `softmax_regression.solve`.

    Returns: for each cell, the classifier of each task.
    Raises: ConfigError for an unusable path, EmptyClass if no fold can be scored, NonFinite for the features.
    """
    ordered, device = check_path(path), features.device
    layout, rows = [], []  # the problems: (cell, task, fold); fold -1 is the fit to all samples
    for cell in range(len(features)):
        for t, task in enumerate(tasks):
            for fold in (-1, *range(task.folds.n_folds)):
                layout.append((cell, t, fold))
    for _, t, fold in layout:
        labels = torch.from_numpy(tasks[t].labels).to(device)
        used = labels >= 0
        if fold >= 0:
            used &= torch.from_numpy(tasks[t].folds.fold != fold).to(device)
        rows.append((labels.clamp(min=0), class_weights(labels, used, n_classes, balanced=balanced)))
    labels, weights = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    cells = torch.tensor([cell for cell, _, _ in layout], device=device)
    problems = Problems(features, cells, labels, weights, n_classes)
    losses = np.full((len(ordered), len(layout)), np.nan)
    unscored = np.zeros(len(layout), dtype=np.int64)
    fits: list[Solutions] = []
    for i, l2 in enumerate(ordered):
        fits.append(solve(problems, l2, start=fits[-1] if fits else None, gap=gap, dtype=dtype))
        for p, (cell, t, fold) in enumerate(layout):
            if fold >= 0:
                held_out = tasks[t].folds.fold == fold
                losses[i, p], unscored[p] = _held_out_loss(
                    features[cell], fits[-1].weight[p], fits[-1].bias[p], tasks[t], held_out, balanced=balanced
                )
    where = {place: p for p, place in enumerate(layout)}
    return [
        [
            _chosen(where, cell, t, task, ordered, losses, unscored, fits, one_standard_error)
            for t, task in enumerate(tasks)
        ]
        for cell in range(len(features))
    ]


def _held_out_loss(
    x: Tensor, weight: Tensor, bias: Tensor, task: Task, held_out: NDArray[np.bool_], *, balanced: bool
) -> tuple[float, int]:
    """Return the log-loss of a fold's samples, and how many have a class that was not learned (they are left out)."""
    rows = torch.from_numpy(np.flatnonzero(held_out)).to(x.device)
    labels = torch.from_numpy(task.labels[held_out]).to(x.device)
    learned = torch.isfinite(bias)[labels]
    if not learned.any():
        return float("nan"), len(labels)
    log_p = (x[rows].double() @ weight.T + bias).log_softmax(1)
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    weights = class_weights(labels, learned, weight.shape[0], balanced=balanced)
    return float((weights * torch.where(learned, loss, 0.0)).sum() / weights.sum()), int((~learned).sum())


def _chosen(
    where: dict[tuple[int, int, int], int],
    cell: int,
    t: int,
    task: Task,
    path: tuple[float, ...],
    losses: NDArray[np.float64],
    unscored: NDArray[np.int64],
    fits: Sequence[Solutions],
    one_standard_error: bool,
) -> Chosen:
    columns = [where[cell, t, fold] for fold in range(task.folds.n_folds)]
    scored = losses[:, columns]
    scored = scored[:, ~np.isnan(scored).any(0)]
    if scored.shape[1] < 2:
        raise EmptyClass(
            f"{scored.shape[1]} of {len(columns)} folds can be scored: the samples of the others have classes that are "
            "in no other fold.",
            fix="a single penalty (l2 with one value), or a group attribute with more values",
        )
    mean = scored.mean(1)
    error = scored.std(1, ddof=1) / np.sqrt(scored.shape[1])
    i = choose(mean.tolist(), error.tolist(), one_standard_error=one_standard_error)
    p, best = where[cell, t, -1], fits[i]
    return Chosen(
        weight=best.weight[p],
        bias=best.bias[p],
        l2=path[i],
        at_edge=len(path) > 1 and i in (0, len(path) - 1),
        path=path,
        log_loss=tuple(mean.tolist()),
        standard_error=tuple(error.tolist()),
        n_unscored=int(unscored[columns].sum()),
        gap=float(best.gap[p]),
        gradient_norm=float(best.gradient_norm[p]),
        converged=all(bool(fit.converged[[p, *columns]].all()) for fit in fits),
        n_steps=int(best.n_steps[p]),
    )
