"""Linear classifiers in closed form: ridge regression on one column per class, the largest output is the class.

Fitting takes one eigendecomposition per fold, so that classifiers can be fitted many times during a training. Where the
probabilities count, the solver of `softmax_regression` is the better choice.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.moments import Moments, RunningMoments, add_moments, subtract_moments
from diffprobe.probes.direction.ridge_cv import solve_path, squared_error

ALPHAS = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Penalties, each a share of the variance of a standardised feature."""
FOLDS = 5


def ridge_predictions(
    train: Float[Tensor, "train d_in"],
    labels: Int[Tensor, "train targets"],
    test: Float[Tensor, "test d_in"],
    *,
    n_classes: Sequence[int],
) -> Int[Tensor, "test targets"]:
    """Fit a classifier per target to the same features, and return the classes of test samples.

    The 0/1 columns of the classes are regressed on standardised features, with an offset that is not penalised
    (`probes.direction.ridge_cv`). Of `ALPHAS` each target takes the one with the smallest squared error over `FOLDS`
    folds, sample i in fold i mod `FOLDS`; of equal ones the largest. So samples should come in random order.

    Args:
        train: features in any unit.
        labels: class ids of each target, from 0.
        test: features of the samples to classify.
        n_classes: number of classes of each target.
    Returns: class ids, on the CPU.
    Raises: ConfigError for fewer samples than folds, or constant features; NonFinite for features that are not finite.
    """
    if len(train) < 2 * FOLDS:
        raise ConfigError(f"{len(train)} samples are too few to choose a penalty: at least {2 * FOLDS}.")
    features = train.double().cpu()
    columns = torch.cat([one_hot(labels[:, i].cpu(), n) for i, n in enumerate(n_classes)], dim=1)
    folds = [_sums(features[i::FOLDS], columns[i::FOLDS]) for i in range(FOLDS)]
    whole = reduce(add_moments, folds)
    alphas = torch.tensor(sorted(ALPHAS, reverse=True), dtype=torch.float64)
    errors = torch.zeros(len(alphas), columns.shape[1], dtype=torch.float64)
    for fold in folds:
        errors += squared_error(fold, *solve_path(subtract_moments(whole, fold), alphas))
    weights, offsets = solve_path(whole, alphas)
    found, start = [], 0
    for n in n_classes:
        own = slice(start, start + n)
        best = int(errors[:, own].sum(1).argmin())
        found.append((test.double().cpu() @ weights[best, :, own] + offsets[best, own]).argmax(1))
        start += n
    return torch.stack(found, dim=1)


def _sums(features: Tensor, columns: Tensor) -> Moments:
    sums = RunningMoments(features.shape[1], columns.shape[1], gram=True)
    sums.update(features, columns)
    return sums.compute()
