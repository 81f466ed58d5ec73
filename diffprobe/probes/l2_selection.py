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
from diffprobe.probes.softmax_regression import GAP, Minimised, Problems, Regressions, Solutions, class_weights

DEFAULT_PATH = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties on the weights of standardised features, beside a mean cross entropy in nats."""
FOLD_GAP = 2e-6
"""Default for the distance of a fold's regression from its minimum, in nats; `bench solver` shows what it does to the
log-loss."""


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
    """The penalties that were tried, largest first."""
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
    patience: int | None = None,
    gap: float = GAP,
    fold_gap: float = FOLD_GAP,
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
        patience: a path ends after this many penalties in a row whose loss is above the smallest by more than one
            standard error; smaller penalties, the slowest to solve, are then not tried. None solves all.
        gap, dtype: see `softmax_regression.solve`; of the classifier that is returned.
        fold_gap: the same for the regressions of the folds.

    Returns: for each cell, the classifier of each task.
    Raises: ConfigError for an unusable path, EmptyClass if no fold can be scored, NonFinite for the features.
    """
    ordered = check_path(path)
    pairs = [(cell, t) for cell in range(len(features)) for t in range(len(tasks))]
    batch = _Folds(features, tasks, n_classes, balanced=balanced, dtype=dtype)
    active, paths = list(range(len(pairs))), [_Path() for _ in pairs]
    theta: dict[int, Tensor] = {}
    for l2 in ordered:
        rows = torch.cat([batch.rows[pair] for pair in active])
        start = torch.cat([theta[pair] for pair in active]) if theta else None
        found = batch.regressions.minimise(l2, rows=rows, start=start, gap=fold_gap)
        losses, unscored = batch.held_out_losses(found)
        at = 0
        for pair in active:
            end = at + len(batch.rows[pair])
            theta[pair] = found.theta[at:end]
            paths[pair].add(theta[pair], losses[at:end], unscored[at:end], bool(found.reached[at:end].all()))
            at = end
        active = [pair for pair in active if not paths[pair].has_risen(patience)]
        if not active:
            break
    choices = [found.choose(one_standard_error=one_standard_error) for found in paths]
    refits = _refit(features, tasks, pairs, n_classes, ordered, choices, paths, balanced=balanced, gap=gap, dtype=dtype)
    chosen = [_chosen(ordered, *parts) for parts in zip(choices, paths, refits, strict=True)]
    return [chosen[cell * len(tasks) : (cell + 1) * len(tasks)] for cell in range(len(features))]


def fold_problems(
    features: Float[Tensor, "cells samples d_in"], tasks: Sequence[Task], n_classes: int, *, balanced: bool = True
) -> Problems:
    """Return the regressions of all folds: cells outermost, then tasks, then folds. See `select_l2`."""
    cells, labels, weights = [], [], []
    for cell in range(len(features)):
        for task in tasks:
            known = torch.from_numpy(task.labels).to(features.device)
            folds = torch.from_numpy(task.folds.fold).to(features.device)
            for fold in range(task.folds.n_folds):
                cells.append(cell)
                labels.append(known.clamp(min=0))
                weights.append(class_weights(known, (known >= 0) & (folds != fold), n_classes, balanced=balanced))
    return Problems(
        features, torch.tensor(cells, device=features.device), torch.stack(labels), torch.stack(weights), n_classes
    )


class _Folds:
    """The regressions of all folds of all pairs of cell and task, and what each fold holds out."""

    def __init__(
        self, features: Tensor, tasks: Sequence[Task], n_classes: int, *, balanced: bool, dtype: torch.dtype
    ) -> None:
        problems = fold_problems(features, tasks, n_classes, balanced=balanced)
        self.regressions = Regressions(problems, dtype=dtype)
        self._labels, self._balanced, self._n_classes = problems.labels, balanced, n_classes
        counts = [task.folds.n_folds for _ in range(len(features)) for task in tasks]
        self.rows: list[Tensor] = list(torch.arange(sum(counts), device=features.device).split(counts))
        of_cell = [
            torch.from_numpy((task.labels >= 0) & (task.folds.fold == fold))
            for task in tasks
            for fold in range(task.folds.n_folds)
        ]
        self._held_out = torch.stack(of_cell * len(features)).to(features.device)

    def held_out_losses(self, found: Minimised) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the log-loss of the samples that each fold holds out, and how many of them have a class that the fold
        has not learned: they are left out. The loss is NaN where none is left."""
        losses, unscored = [], []
        for row, log_p in zip(found.rows.tolist(), self.regressions.label_log_p(found), strict=True):
            held_out = self._held_out[row]
            labels, picked = self._labels[row][held_out], log_p[held_out].double()
            learned = torch.isfinite(picked)
            unscored.append(int((~learned).sum()))
            if not learned.any():
                losses.append(float("nan"))
                continue
            weights = class_weights(labels, learned, self._n_classes, balanced=self._balanced)
            losses.append(float(-(weights * torch.where(learned, picked, 0.0)).sum() / weights.sum()))
        return np.array(losses), np.array(unscored, dtype=np.int64)


class _Path:
    """What the folds of one classifier found along the path so far."""

    def __init__(self) -> None:
        self.losses: list[NDArray[np.float64]] = []
        self.starts: list[Tensor] = []
        self.n_unscored = 0
        self.converged = True

    def add(self, theta: Tensor, losses: NDArray[np.float64], unscored: NDArray[np.int64], converged: bool) -> None:
        """Add the next penalty."""
        self.losses.append(losses)
        self.starts.append(theta.mean(0))
        self.n_unscored = int(unscored.sum())
        self.converged &= converged

    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard error over the folds, per penalty.

        Raises: EmptyClass if fewer than two folds can be scored.
        """
        losses = np.stack(self.losses)
        scored = losses[:, ~np.isnan(losses).any(0)]
        if scored.shape[1] < 2:
            raise EmptyClass(
                f"{scored.shape[1]} of {losses.shape[1]} folds can be scored: the samples of the others have classes "
                "that are in no other fold.",
                fix="a single penalty (l2 with one value), or a group attribute with more values",
            )
        return scored.mean(1), scored.std(1, ddof=1) / np.sqrt(scored.shape[1])

    def has_risen(self, patience: int | None) -> bool:
        """Return whether the last `patience` losses are each above the smallest by more than its standard error."""
        if patience is None or len(self.losses) <= patience:
            return False
        mean, error = self.scores()
        best = int(np.argmin(mean))
        return best < len(mean) - patience and bool((mean[-patience:] > mean[best] + error[best]).all())

    def choose(self, *, one_standard_error: bool) -> int:
        """Return the position of the chosen penalty."""
        mean, error = self.scores()
        return choose(mean.tolist(), error.tolist(), one_standard_error=one_standard_error)


def _refit(
    features: Tensor,
    tasks: Sequence[Task],
    pairs: Sequence[tuple[int, int]],
    n_classes: int,
    path: Sequence[float],
    choices: Sequence[int],
    paths: Sequence[_Path],
    *,
    balanced: bool,
    gap: float,
    dtype: torch.dtype,
) -> list[tuple[Solutions, int]]:
    """Fit each classifier to all samples at its penalty, from the mean of its folds.

    Returns: for each, solutions and its place among them.
    """
    labels = [torch.from_numpy(tasks[t].labels).to(features.device) for _, t in pairs]
    weights = [class_weights(of_task, of_task >= 0, n_classes, balanced=balanced) for of_task in labels]
    cells = torch.tensor([cell for cell, _ in pairs], device=features.device)
    known = torch.stack([of_task.clamp(min=0) for of_task in labels])
    batch = Regressions(Problems(features, cells, known, torch.stack(weights), n_classes), dtype=dtype)
    found: dict[int, tuple[Solutions, int]] = {}
    for choice in sorted(set(choices)):
        members = [i for i, other in enumerate(choices) if other == choice]
        start = torch.stack([paths[i].starts[choice] for i in members])
        rows = torch.tensor(members, device=features.device)
        solved = batch.certify(path[choice], batch.minimise(path[choice], rows=rows, start=start, gap=gap), gap=gap)
        found.update({member: (solved, place) for place, member in enumerate(members)})
    return [found[i] for i in range(len(pairs))]


def _chosen(path: Sequence[float], choice: int, found: _Path, refit: tuple[Solutions, int]) -> Chosen:
    (mean, error), (solved, place) = found.scores(), refit
    return Chosen(
        weight=solved.weight[place],
        bias=solved.bias[place],
        l2=path[choice],
        at_edge=len(path) > 1 and choice in (0, len(path) - 1),
        path=tuple(path[: len(mean)]),
        log_loss=tuple(mean.tolist()),
        standard_error=tuple(error.tolist()),
        n_unscored=found.n_unscored,
        gap=float(solved.gap[place]),
        gradient_norm=float(solved.gradient_norm[place]),
        converged=found.converged and bool(solved.converged[place]),
        n_steps=int(solved.n_steps[place]),
    )
