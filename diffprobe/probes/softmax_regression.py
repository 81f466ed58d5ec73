"""Multinomial logistic regression with an L2 penalty, solved to convergence for many problems at once.

Problems of equal shape (cells x targets x folds) are solved together by L-BFGS: those that read the same features share
one matrix product per step, and each has its own step size, history and end. Standardisation is part of a problem, so
that folds with different means share features too. Steps are preconditioned by the covariance of the features times the
curvature of each class where a solution starts. Pure torch.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

GAP = 1e-6
"""Default for the largest distance of the objective from its minimum, in nats."""
MAX_STEPS = 2000
"""Default for the largest number of steps of a problem."""
_ARMIJO, _HISTORY = 1e-4, 10
_LEAST_CURVATURE = 1e-3
"""Smallest curvature of a class in the preconditioner, as a share of that where nothing is learned yet."""


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
    max_steps: int = MAX_STEPS,
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
    batch = Regressions(problems, dtype=dtype)
    theta = None if start is None else torch.cat([start.standard_weight, start.standard_bias[..., None]], dim=2)
    found = batch.minimise(l2, start=theta, gap=gap, max_steps=max_steps)
    return batch.certify(l2, found, gap=gap, max_steps=max_steps)


@dataclass(frozen=True)
class Minimised:
    """Some problems of a batch at the end of their steps, on standardised features."""

    rows: Int[Tensor, " problems"]
    """Which problems of the batch."""
    theta: Float[Tensor, "problems n_classes d_in_and_bias"]
    """Weights, and the bias as the last column."""
    n_steps: Int[Tensor, " problems"]
    """L-BFGS steps taken."""
    reached: Bool[Tensor, " problems"]
    """Whether the gradient, in the type of the products, is as small as was asked for."""


class Regressions:
    """Problems that are prepared once and solved at several penalties.

    Args:
        problems: the problems.
        dtype: type of the products.

    Raises: ConfigError for a problem without weights; NonFinite for features with NaN or infinity.
    """

    def __init__(self, problems: Problems, *, dtype: torch.dtype = torch.float64) -> None:
        if not torch.isfinite(problems.features).all():
            raise NonFinite("the features of a regression have NaN or infinity.")
        if not (problems.weights.sum(1) > 0).all():
            raise ConfigError("a regression needs at least one sample with a weight.")
        self._problems = problems
        self._objective = _Objective(problems, dtype)

    def minimise(
        self,
        l2: float,
        *,
        rows: Int[Tensor, " problems"] | None = None,
        start: Float[Tensor, "problems n_classes d_in_and_bias"] | None = None,
        gap: float = GAP,
        max_steps: int = MAX_STEPS,
    ) -> Minimised:
        """Take steps in the type of the products; see `solve`.

        Args:
            l2, gap, max_steps: see `solve`.
            rows: which problems; None for all.
            start: where each of them starts; None for zero.
        """
        _check(l2, gap, max_steps)
        objective = self._objective
        if rows is None:
            rows = torch.arange(len(objective.prior), device=objective.prior.device)
        theta = objective.zero(rows) if start is None else start.to(objective.dtype)
        return _minimise(objective, theta, rows, l2, math.sqrt(2 * l2 * gap), max_steps)

    def certify(self, l2: float, found: Minimised, *, gap: float = GAP, max_steps: int = MAX_STEPS) -> Solutions:
        """Evaluate solutions in float64, where needed after further steps in that type."""
        _check(l2, gap, max_steps)
        exact = _Objective(_subset(self._problems, found.rows), torch.float64)
        theta, steps, limit = found.theta.double(), found.n_steps.clone(), math.sqrt(2 * l2 * gap)
        everything = torch.arange(len(theta), device=theta.device)
        _, slope = exact(theta, everything, l2)
        rest = (slope.flatten(1).norm(dim=1) > limit).nonzero()[:, 0]
        if self._objective.dtype != torch.float64 and len(rest):
            more = _minimise(exact, theta[rest], rest, l2, limit, max_steps)
            theta[rest], steps[rest] = more.theta, steps[rest] + more.n_steps
        value, slope = exact(theta, everything, l2)
        norm = slope.flatten(1).norm(dim=1)
        weight, bias = exact.in_own_unit(theta)
        return Solutions(
            weight, bias, theta[..., :-1], theta[..., -1], value, norm, norm.square() / (2 * l2),
            norm <= limit * (1 + 1e-9), steps,
        )  # fmt: skip

    def label_log_p(self, found: Minimised) -> Float[Tensor, "problems samples"]:
        """Return the log-probability of the label of every sample, also of those without a weight; -inf for a class
        that a problem has not seen."""
        objective, cells = self._objective, self._objective.cell[found.rows]
        picked = torch.empty(len(found.rows), objective.features.shape[1], dtype=objective.dtype, device=cells.device)
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            rows = found.rows[here]
            log_p = objective.log_p(found.theta[here], rows, objective.features[c])
            picked[here] = log_p.gather(1, objective.labels[rows][:, None])[:, 0]
        return picked


def _check(l2: float, gap: float, max_steps: int) -> None:
    if not (l2 > 0 and math.isfinite(l2) and gap > 0 and max_steps >= 1):
        raise ConfigError(f"l2={l2}, gap={gap}, max_steps={max_steps}: l2 and gap above 0, max_steps at least 1.")


def _subset(problems: Problems, rows: Tensor) -> Problems:
    return Problems(
        problems.features, problems.cell[rows], problems.labels[rows], problems.weights[rows], problems.n_classes
    )


class _Objective:
    """Values and gradients of some problems, and the preconditioner of their steps."""

    def __init__(self, problems: Problems, dtype: torch.dtype) -> None:
        self.dtype, self.cell, self.n_classes = dtype, problems.cell, problems.n_classes
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
        self.curvature = (self.prior * (1 - self.prior)).to(dtype)
        covariance = centred.mT @ centred / centred.shape[1]
        spectrum, basis = torch.linalg.eigh(covariance)
        self.spectrum, self.basis = spectrum.clamp(min=0).to(dtype), basis.to(dtype)

    def zero(self, rows: Tensor) -> Tensor:
        """Return weights and biases (rows, n_classes, d_in + 1): zero, and the log of the class shares."""
        prior = self.prior[rows]
        theta = torch.zeros(*prior.shape, self.mean.shape[1] + 1, dtype=torch.float64, device=self.mean.device)
        theta[..., -1] = torch.where(self.absent[rows], 0.0, prior.clamp(min=1e-300).log())
        return theta.to(self.dtype)

    def __call__(self, theta: Tensor, rows: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """Return the objective (len(rows)), float64, and its gradient (len(rows), n_classes, d_in + 1)."""
        value = torch.empty(len(rows), dtype=torch.float64, device=theta.device)
        slope = torch.empty_like(theta)
        cells = self.cell[rows]
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            value[here], slope[here] = self._of_cell(theta[here], rows[here], self.features[c], l2)
        return value, slope

    def log_p(self, theta: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        """Return the log-probabilities (len(rows), n_classes, samples) of problems that read the features x."""
        scale, mean = self.inverse_std[rows].to(self.dtype)[:, None], self.mean[rows].to(self.dtype)[:, None]
        weight = theta[..., :-1] * scale
        offset = (theta[..., -1] - (weight * mean).sum(2)).masked_fill(self.absent[rows], -math.inf)
        logits = torch.addmm(offset.reshape(-1, 1), weight.reshape(-1, x.shape[1]), x.T)
        return logits.view(len(rows), self.n_classes, len(x)).log_softmax(1)  # samples last: vectorised over them

    def _of_cell(self, theta: Tensor, rows: Tensor, x: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        log_p = self.log_p(theta, rows, x)
        sample_weights, labels = self.weights[rows], self.labels[rows][:, None]
        picked = torch.where(sample_weights > 0, log_p.gather(1, labels)[:, 0], 0.0)
        penalty = l2 / 2 * theta[..., :-1].double().square().sum((1, 2))
        value = penalty - (sample_weights * picked).double().sum(1)
        error = log_p.exp_()
        error.scatter_add_(1, labels, torch.full_like(picked, -1)[:, None])
        error *= sample_weights[:, None]
        total = error.sum(2)
        scale, mean = self.inverse_std[rows].to(self.dtype)[:, None], self.mean[rows].to(self.dtype)[:, None]
        raw = (error.view(-1, len(x)) @ x).view(len(rows), self.n_classes, -1)
        slope = torch.cat([(raw - total[..., None] * mean) * scale + l2 * theta[..., :-1], total[..., None]], 2)
        return value, slope

    def measure_curvature(self, theta: Tensor, rows: Tensor) -> None:
        """Set the curvature of each class, the weighted mean of p * (1 - p), where the problems are now."""
        cells = self.cell[rows]
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            p = self.log_p(theta[here], rows[here], self.features[c]).exp_()
            found = (p * (1 - p) * self.weights[rows[here]][:, None]).sum(2)
            prior = self.prior[rows[here]].to(self.dtype)
            self.curvature[rows[here]] = torch.maximum(found, _LEAST_CURVATURE * prior * (1 - prior))

    def precondition(self, slope: Tensor, rows: Tensor, l2: float) -> Tensor:
        """Multiply by the inverse of curvature * covariance + l2 of each class, in the basis of a cell."""
        curvature = self.curvature[rows]
        cells, out = self.cell[rows], torch.empty_like(slope)
        for c in cells.unique().tolist():
            here = (cells == c).nonzero()[:, 0]
            basis = self.basis[c]
            turned = slope[here, :, :-1] @ basis
            out[here, :, :-1] = (turned / (curvature[here][..., None] * self.spectrum[c] + l2)) @ basis.T
        out[..., -1] = slope[..., -1] / torch.where(curvature > 0, curvature, 1.0)
        return out

    def in_own_unit(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and biases for features in their own unit, float64."""
        unit, shift = self.unit[self.cell], self.shift[self.cell]
        weight = theta[..., :-1].double() * self.inverse_std[:, None]
        bias = theta[..., -1].double() - (weight * self.mean[:, None]).sum(2)
        weight = weight / unit[:, None]
        bias = bias - (weight * shift[:, None]).sum(2)
        return weight, bias.masked_fill(self.absent, -math.inf)


def _minimise(objective: _Objective, theta: Tensor, rows: Tensor, l2: float, limit: float, max_steps: int) -> Minimised:
    """Take L-BFGS steps until the gradient norm of each problem is at most `limit` or no step lowers its objective.

    Args:
        theta: where the problems start (len(rows), n_classes, d_in + 1).
        rows: which problems of the objective.
    """
    everything, final = rows, theta.clone()
    n_steps = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    reached = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    objective.measure_curvature(theta, rows)
    places, now = torch.arange(len(rows), device=rows.device), theta.clone()
    value, slope = objective(now, rows, l2)
    history: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(live: Tensor) -> None:
        nonlocal places, rows, now, value, slope, history
        final[places[~live]] = now[~live]
        places, rows, now, value, slope = places[live], rows[live], now[live], value[live], slope[live]
        history = [(s[live], y[live], r[live]) for s, y, r in history]

    for _ in range(max_steps):
        live = slope.flatten(1).norm(dim=1) > limit
        if not live.all():
            reached[places[~live]] = True
            keep(live)
        if not len(rows):
            break
        step = _direction(objective, slope, rows, history, l2)
        moved, new_value, new_slope, size = _search(objective, now, value, slope, step, rows, l2)
        stuck = size == 0
        n_steps[places[~stuck]] += 1
        change, difference = moved - now, new_slope - slope
        product = (change * difference).flatten(1).sum(1)
        curved = product > 1e-12 * difference.flatten(1).square().sum(1)  # else the pair is left out, by a factor of 0
        rho = torch.where(curved, 1 / torch.where(curved, product, 1.0), 0.0)
        history = [*history[-_HISTORY + 1 :], (change, difference, rho)]
        now, value, slope = moved, new_value, new_slope
        if stuck.any():
            keep(~stuck)
    reached[places] = slope.flatten(1).norm(dim=1) <= limit
    final[places] = now
    return Minimised(everything, final, n_steps, reached)


def _direction(
    objective: _Objective, slope: Tensor, rows: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], l2: float
) -> Tensor:
    """Return the L-BFGS step of each problem."""
    q, factors = slope, []
    for change, difference, rho in reversed(history):
        factor = rho * (change * q).flatten(1).sum(1)
        q = q - factor[:, None, None] * difference
        factors.append(factor)
    q = objective.precondition(q, rows, l2)
    if history:  # the preconditioner is scaled to the curvature along the last step (Nocedal and Wright 2006, 7.20)
        change, difference, rho = history[-1]
        along = (difference * objective.precondition(difference, rows, l2)).flatten(1).sum(1)
        scale = torch.where((rho > 0) & (along > 0), (change * difference).flatten(1).sum(1) / along, 1.0)
        q = q * scale[:, None, None]
    for (change, difference, rho), factor in zip(history, reversed(factors), strict=True):
        back = rho * (difference * q).flatten(1).sum(1)
        q = q + (factor - back)[:, None, None] * change
    step = -q
    descends = (step * slope).flatten(1).sum(1) < 0
    if descends.all():
        return step
    return torch.where(descends[:, None, None], step, -objective.precondition(slope, rows, l2))


def _search(
    objective: _Objective, now: Tensor, value: Tensor, slope: Tensor, step: Tensor, rows: Tensor, l2: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each problem's step until its objective falls enough. Returns point, value, gradient and size (0: none)."""
    gain = (step * slope).flatten(1).sum(1).double()
    rounding = 4 * torch.finfo(slope.dtype).eps * value.abs().clamp(min=1.0)
    size = torch.ones_like(value)
    best, best_value, best_slope = now.clone(), value.clone(), slope.clone()
    waiting = torch.arange(len(rows), device=rows.device)
    for _ in range(30):
        tried = now[waiting] + size[waiting].to(now.dtype)[:, None, None] * step[waiting]
        new_value, new_slope = objective(tried, rows[waiting], l2)
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
