"""Multinomial logistic regression with an L2 penalty, solved to convergence for many problems at once.

Problems of equal shape (cells x targets x folds) are solved together by L-BFGS: those that read the same features share
one matrix product per step, and each has its own step size, history and end. Standardisation is part of a problem, so
that folds with different means share features too. Pure torch.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

GAP = 1e-6
"""Default for the largest distance of the objective from its minimum, in nats."""
_ARMIJO, _HISTORY = 1e-4, 10


@dataclass(frozen=True)
class Problems:
    """P regressions of equal shape; each reads one of some feature matrices."""

    features: Float[Tensor, "cells samples d_in"]
    """Features in any unit, finite."""
    cell: Int[Tensor, " problems"]
    """Which matrix a problem reads."""
    labels: Int[Tensor, "problems samples"]
    """Class ids from 0; of samples without weight any valid id."""
    weights: Float[Tensor, "problems samples"]
    """Weight of each sample, at least 0; 0 leaves it out, also of the standardisation."""
    n_classes: int
    """Number of classes. A class without a weighted sample gets the logit -inf."""


@dataclass(frozen=True)
class Solutions:
    """Solved regressions; weights are for features in their own unit, their standardisation folded in."""

    weight: Float[Tensor, "problems n_classes d_in"]
    """Weights in the unit of the features, float64."""
    bias: Float[Tensor, "problems n_classes"]
    """Offsets, float64; -inf for a class without a sample."""
    standard_weight: Float[Tensor, "problems n_classes d_in"]
    """Weights on standardised features, which the penalty is on; a start for the next solution."""
    standard_bias: Float[Tensor, "problems n_classes"]
    """Offsets on standardised features."""
    objective: Float[Tensor, " problems"]
    """Weighted mean cross entropy plus l2 / 2 * |W|^2, nats."""
    gradient_norm: Float[Tensor, " problems"]
    """Euclidean norm of the gradient where the solver stopped."""
    gap: Float[Tensor, " problems"]
    """Upper bound of the distance from the minimum over the weights, gradient_norm^2 / (2 l2), nats."""
    converged: Bool[Tensor, " problems"]
    """Whether `gap` is at most what was asked for."""
    n_steps: Int[Tensor, " problems"]
    """L-BFGS steps taken."""


def class_weights(labels: Tensor, used: Tensor, n_classes: int, *, balanced: bool) -> Tensor:
    """Return the weight of each sample: 1, or samples / (classes * samples of its class), as scikit-learn's "balanced".

    Args:
        labels: class ids (samples).
        used: whether a sample is used (samples); the weight of the others is 0.
        n_classes: number of classes; those without a used sample do not count.
        balanced: whether every class has the same total weight.
    """
    if not balanced:
        return used.double()
    counts = torch.bincount(labels[used], minlength=n_classes).double()
    n, held = counts.sum(), (counts > 0).sum()
    per_class = torch.where(counts > 0, n / (held * counts.clamp(min=1)), 0.0)
    return torch.where(used, per_class[labels.clamp(min=0)], 0.0)


def solve(
    problems: Problems,
    l2: float,
    *,
    start: Solutions | None = None,
    gap: float = GAP,
    max_steps: int = 2000,
    dtype: torch.dtype = torch.float64,
) -> Solutions:
    """Minimise the weighted mean cross entropy plus l2 / 2 * |W|^2 of each problem; biases are not penalised.

    Features are standardised per problem by mean and variance (not weighted by class) of the samples with a weight; a
    dimension without variance gets weight 0. It is scikit-learn's LogisticRegression with C = 1 / (l2 * sum of weights)
    on standardised features.

    Args:
        problems: the problems.
        l2: strength of the penalty, above 0.
        start: solutions of the same problems at another strength; None starts at zero.
        gap: a problem ends where gradient_norm^2 / (2 l2) is at most this, which bounds the distance to the minimum.
        max_steps: largest number of steps per problem.
        dtype: type of the products. In float32, problems that stop before `gap` because of rounding go on in float64.

    Raises: ConfigError for l2 or gap at or below 0, max_steps below 1, and a problem without weights; NonFinite for
        features with NaN or infinity.
    """
    if not (l2 > 0 and math.isfinite(l2) and gap > 0 and max_steps >= 1):
        raise ConfigError(f"l2={l2}, gap={gap}, max_steps={max_steps}: l2 and gap above 0, max_steps at least 1.")
    if not torch.isfinite(problems.features).all():
        raise NonFinite("the features of a regression have NaN or infinity.")
    if not (problems.weights.sum(1) > 0).all():
        raise ConfigError("a regression needs at least one sample with a weight.")
    state = _Objective(problems, l2, dtype)
    theta = state.start(start)
    steps, limit = torch.zeros(len(theta), dtype=torch.int64, device=theta.device), math.sqrt(2 * l2 * gap)
    theta, steps = _minimise(state, theta, steps, limit, max_steps)
    everything = torch.arange(len(theta), device=theta.device)
    exact = _Objective(problems, l2, torch.float64)
    theta = theta.double()
    _, slope = exact(theta, everything)
    rest = (slope.flatten(1).norm(dim=1) > limit).nonzero()[:, 0]
    if dtype != torch.float64 and len(rest):
        part = _Objective(_subset(problems, rest), l2, torch.float64)
        theta[rest], steps[rest] = _minimise(part, theta[rest], steps[rest], limit, max_steps)
    value, slope = exact(theta, everything)
    norm = slope.flatten(1).norm(dim=1)
    found = norm.square() / (2 * l2)
    weight, bias = exact.in_own_unit(theta)
    return Solutions(
        weight, bias, theta[..., :-1], theta[..., -1], value, norm, found, norm <= limit * (1 + 1e-9), steps
    )


def _subset(problems: Problems, rows: Tensor) -> Problems:
    return Problems(
        problems.features, problems.cell[rows], problems.labels[rows], problems.weights[rows], problems.n_classes
    )


class _Objective:
    """Values and gradients of some problems, and the preconditioner of their steps."""

    def __init__(self, problems: Problems, l2: float, dtype: torch.dtype) -> None:
        self.l2, self.dtype, self.cell, self.n_classes = l2, dtype, problems.cell, problems.n_classes
        self.labels = problems.labels
        used = (problems.weights > 0).double()
        self.weights = (problems.weights.double() / problems.weights.double().sum(1, keepdim=True)).to(dtype)
        whole = problems.features.double()
        # centred once, so that folding the mean of a fold into the bias cancels no digits
        self.shift, deviation = whole.mean(1), whole.std(1, unbiased=False)
        self.unit = torch.where(deviation > 0, deviation, 1.0)
        centred = (whole - self.shift[:, None]) / self.unit[:, None]
        self.features = centred.to(dtype)
        share = used / used.sum(1, keepdim=True)
        self.mean = torch.empty(len(used), whole.shape[2], dtype=torch.float64, device=whole.device)
        variance = torch.empty_like(self.mean)
        for c in self.cell.unique().tolist():
            rows = self.cell == c
            self.mean[rows] = share[rows] @ centred[c]
            variance[rows] = (share[rows] @ centred[c].square()) - self.mean[rows].square()
        flat = variance <= 1e-12
        self.inverse_std = torch.where(flat, 0.0, variance.clamp(min=1e-12).rsqrt())
        onehot = torch.zeros(len(used), self.n_classes, dtype=torch.float64, device=whole.device)
        self.prior = onehot.scatter_add_(1, self.labels, self.weights.double())
        self.absent = self.prior == 0
        covariance = centred.mT @ centred / centred.shape[1]
        self.spectrum, self.basis = torch.linalg.eigh(covariance)

    def start(self, given: Solutions | None) -> Tensor:
        """Return weights and biases (problems, n_classes, d_in + 1); at zero, the log of the class shares."""
        if given is not None:
            return torch.cat([given.standard_weight, given.standard_bias[..., None]], dim=2).to(self.dtype)
        theta = torch.zeros(*self.prior.shape, self.mean.shape[1] + 1, dtype=torch.float64, device=self.mean.device)
        theta[..., -1] = torch.where(self.absent, 0.0, self.prior.clamp(min=1e-300).log())
        return theta.to(self.dtype)

    def __call__(self, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective (len(rows)), float64, and its gradient (len(rows), n_classes, d_in + 1)."""
        value = torch.empty(len(rows), dtype=torch.float64, device=theta.device)
        slope = torch.empty_like(theta)
        cells = self.cell[rows]
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            value[here], slope[here] = self._of_cell(theta[here], rows[here], self.features[c])
        return value, slope

    def _of_cell(self, theta: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, mean = self.inverse_std[rows].to(self.dtype)[:, None], self.mean[rows].to(self.dtype)[:, None]
        weight, bias = theta[..., :-1] * scale, theta[..., -1]
        offset = bias - (weight * mean).sum(2)
        n_problems, n_classes = offset.shape
        logits = (x @ weight.reshape(-1, x.shape[1]).T).view(len(x), n_problems, n_classes) + offset
        logits = logits.masked_fill(self.absent[rows], -math.inf)
        log_p = logits.log_softmax(2)
        sample_weights, labels = self.weights[rows].T, self.labels[rows].T[..., None]
        picked = torch.where(sample_weights > 0, log_p.gather(2, labels)[..., 0], 0.0)
        penalty = self.l2 / 2 * theta[..., :-1].double().square().sum((1, 2))
        value = penalty - (sample_weights * picked).double().sum(0)
        error = log_p.exp()
        error.scatter_add_(2, labels, torch.full_like(labels, -1, dtype=error.dtype))
        error *= sample_weights[..., None]
        total = error.sum(0)
        raw = (error.view(len(x), -1).T @ x).view(n_problems, n_classes, -1)
        slope = torch.cat([(raw - total[..., None] * mean) * scale + self.l2 * theta[..., :-1], total[..., None]], 2)
        return value, slope

    def precondition(self, slope: Tensor, rows: Tensor) -> Tensor:
        """Multiply by the inverse of share * (1 - share) * covariance + l2 of each class, in the basis of a cell."""
        curvature = (self.prior[rows] * (1 - self.prior[rows])).to(slope.dtype)
        cells, out = self.cell[rows], torch.empty_like(slope)
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            basis, spectrum = self.basis[c].to(slope.dtype), self.spectrum[c].clamp(min=0).to(slope.dtype)
            turned = slope[here, :, :-1] @ basis
            out[here, :, :-1] = (turned / (curvature[here][..., None] * spectrum + self.l2)) @ basis.T
        out[..., -1] = slope[..., -1] / curvature.clamp(min=1e-3)
        return out

    def in_own_unit(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and biases for features in their own unit, float64."""
        unit, shift = self.unit[self.cell], self.shift[self.cell]
        weight = theta[..., :-1].double() * self.inverse_std[:, None]
        bias = theta[..., -1].double() - (weight * self.mean[:, None]).sum(2)
        weight = weight / unit[:, None]
        bias = bias - (weight * shift[:, None]).sum(2)
        return weight, bias.masked_fill(self.absent, -math.inf)


def _minimise(
    objective: _Objective, theta: Tensor, steps: Tensor, limit: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Take L-BFGS steps until the gradient norm of each problem is at most `limit` or no step lowers its objective."""
    theta, steps = theta.clone(), steps.clone()
    rows = torch.arange(len(theta), device=theta.device)
    now = theta.clone()
    value, slope = objective(now, rows)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_steps):
        live = slope.flatten(1).norm(dim=1) > limit
        if not live.all():
            theta[rows[~live]] = now[~live]
            rows, now, value, slope = rows[live], now[live], value[live], slope[live]
            history = [(s[live], y[live], r[live]) for s, y, r in history]
        if not len(rows):
            return theta, steps
        step = _direction(objective, slope, rows, history)
        moved, new_value, new_slope, size = _search(objective, now, value, slope, step, rows)
        stuck = size == 0
        steps[rows[~stuck]] += 1
        change, difference = moved - now, new_slope - slope
        product = (change * difference).flatten(1).sum(1)
        curved = product > 1e-12 * difference.flatten(1).square().sum(1)  # else the pair is left out, by a factor of 0
        rho = torch.where(curved, 1 / torch.where(curved, product, 1.0), 0.0)
        history = [*history[-_HISTORY + 1 :], (change, difference, rho)]
        now, value, slope = moved, new_value, new_slope
        if stuck.any():
            theta[rows[stuck]] = now[stuck]
            kept = ~stuck
            rows, now, value, slope = rows[kept], now[kept], value[kept], slope[kept]
            history = [(s[kept], y[kept], r[kept]) for s, y, r in history]
    theta[rows] = now
    return theta, steps


def _direction(
    objective: _Objective, slope: Tensor, rows: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Return the L-BFGS step of each problem."""
    q, factors = slope, []
    for change, difference, rho in reversed(history):
        factor = rho * (change * q).flatten(1).sum(1)
        q = q - factor[:, None, None] * difference
        factors.append(factor)
    q = objective.precondition(q, rows)
    for (change, difference, rho), factor in zip(history, reversed(factors), strict=True):
        back = rho * (difference * q).flatten(1).sum(1)
        q = q + (factor - back)[:, None, None] * change
    step = -q
    descends = (step * slope).flatten(1).sum(1) < 0
    return torch.where(descends[:, None, None], step, -objective.precondition(slope, rows))


def _search(
    objective: _Objective, now: Tensor, value: Tensor, slope: Tensor, step: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each problem's step until its objective falls enough. Returns point, value, gradient and size (0: none)."""
    gain = (step * slope).flatten(1).sum(1).double()
    rounding = 4 * torch.finfo(slope.dtype).eps * value.abs().clamp(min=1.0)
    size = torch.ones_like(value)
    best, best_value, best_slope = now.clone(), value.clone(), slope.clone()
    waiting = torch.arange(len(rows), device=rows.device)
    for _ in range(30):
        tried = now[waiting] + size[waiting].to(now.dtype)[:, None, None] * step[waiting]
        new_value, new_slope = objective(tried, rows[waiting])
        along = (new_slope * step[waiting]).flatten(1).sum(1).double()
        falls = new_value <= value[waiting] + _ARMIJO * size[waiting] * gain[waiting]
        # near the minimum the fall is below rounding: then the slope along the step has to shrink
        settles = (new_value <= value[waiting] + rounding[waiting]) & (along.abs() <= 0.9 * gain[waiting].abs())
        done = falls | settles
        at = waiting[done]
        best[at], best_value[at], best_slope[at] = tried[done], new_value[done], new_slope[done]
        waiting = waiting[~done]
        if not len(waiting):
            break
        size[waiting] /= 2
    size[waiting] = 0
    return best, best_value, best_slope, size
