"""Scores of depth up to an unknown scale: SILog, and the share of pixel pairs in the right order.

Both come from sums that add up over images, so that a score is exact however images are split over batches, and a
resample of images needs no second pass. The order of pairs is for truth that has levels and no unit, as layers of a
drawing have: unlike a rank correlation it has the maximum 1 when the truth has ties.
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

LOG_PARTS = ("n", "log_error", "log_error_squared")
"""Sums of the pixels of an image: their number, log predicted - log true depth, and its square."""
ORDER_PARTS = ("ordered", "pairs")
"""Pairs of pixels of two levels: those in the right order, ties as half, and all of them."""


def log_error_sums(
    predicted: Float[Tensor, "height width"], truth: Float[Tensor, "true_height true_width"], *, smallest: float = 1e-3
) -> NDArray[np.float64]:
    """Return the sums `LOG_PARTS` over the pixels of an image whose true depth is above 0.

    Args:
        smallest: smaller predictions are raised to it, in units of the depth, above 0.

    Raises: ConfigError for maps of two sizes, or `smallest` of 0 or less; NonFinite for a prediction that is not
        finite.
    """
    _compare(predicted, truth)
    if not smallest > 0:
        raise ConfigError(f"smallest={smallest} is out of range: more than 0.")
    known = truth > 0
    error = predicted[known].double().clamp(min=smallest).log() - truth[known].double().log()
    return np.array([float(known.sum()), float(error.sum()), float(error.square().sum())])


def silog(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of the log error from summed `LOG_PARTS`, (..., 3); NaN without a pixel.

    This is the scale-invariant error of Eigen et al. (1406.2283, section 3.2) with weight 1, as its square root and
    not multiplied by 100: 0 for a prediction that is a constant times the truth.

    >>> float(silog(np.array([4.0, 8.0, 16.0])))
    0.0
    """
    n, first, second = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    safe = np.where(n > 0, n, np.nan)
    return np.sqrt(np.maximum(second / safe - (first / safe) ** 2, 0))


def order_sums(
    predicted: Float[Tensor, "height width"], truth: Shaped[Tensor, "true_height true_width"], *, gap: float = 0
) -> NDArray[np.float64]:
    """Return the sums `ORDER_PARTS` over all pairs of pixels of an image that have different true levels.

    Args:
        truth: level of each pixel; a larger prediction is expected where the level is larger.
        gap: pairs of levels that are closer than this are left out, for example those of the parts of one thing.

    Raises: ConfigError for maps of two sizes, or a negative gap; NonFinite for a prediction that is not finite.
    """
    _compare(predicted, truth)
    if gap < 0:
        raise ConfigError(f"gap={gap:g} is out of range: at least 0.")
    levels = truth.unique()
    values = [predicted[truth == level].double().sort().values for level in levels]
    ordered = pairs = 0.0
    for far, low in enumerate(values):
        for near in range(far + 1, len(values)):
            if float(levels[near]) - float(levels[far]) < gap:
                continue
            high = values[near]
            below = torch.searchsorted(low, high, right=False).sum()
            up_to = torch.searchsorted(low, high, right=True).sum()
            ordered += float(below + up_to) / 2
            pairs += len(low) * len(high)
    return np.array([ordered, pairs])


def order_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of pairs in the right order from summed `ORDER_PARTS`, (..., 2); NaN without a pair.

    A constant prediction has .5.
    """
    ordered, pairs = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return np.divide(ordered, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)


def _compare(predicted: Tensor, truth: Tensor) -> None:
    if predicted.shape != truth.shape:
        raise ConfigError(f"the prediction has {tuple(predicted.shape)} pixels, the truth {tuple(truth.shape)}.")
    if not predicted.isfinite().all():
        raise NonFinite("the predicted depth is not finite.")
