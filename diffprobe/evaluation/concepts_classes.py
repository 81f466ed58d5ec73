"""From maps of words to classes of pixels: scores of classes, thresholds, and average precision in an image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.classification import binary_average_precision

_FLAT = 1e-6
"""Span of shares up to which a map is flat: differences by rounding."""


def class_scores(
    maps: Float[Tensor, "words rows columns"],
    owners: Sequence[int],
    n_classes: int,
    size: tuple[int, int],
    *,
    min_max: bool = False,
) -> Float[Tensor, "classes height width"]:
    """Return the score of each class in each pixel: the largest of its words, in [0, 1].

    A class without words has 1 minus the largest score of the others.

    Args:
        maps: shares of the words.
        owners: position of the class of each word.
        size: height and width of the truth.
        min_max: scale the map of each class linearly from 0 to 1; a flat map becomes 0.
    """
    own = sorted(set(owners))
    at = [[i for i, owner in enumerate(owners) if owner == one] for one in own]
    known = interpolate(
        torch.stack([maps[of].amax(0) for of in at])[None], size=size, mode="bilinear", align_corners=False
    )[0].clamp(0, 1)  # fmt: skip
    if min_max:
        low, high = known.amin((1, 2), keepdim=True), known.amax((1, 2), keepdim=True)
        span = high - low
        known = torch.where(span > _FLAT, (known - low) / span, 0)
    scores = (1 - known.amax(0)).expand(n_classes, *size).clone()
    scores[own] = known
    return scores


def classes_at(
    scores: Float[Tensor, "classes height width"], rest: int | None, threshold: float | None
) -> Int[Tensor, "height width"]:
    """Return the class of each pixel: that of the largest score, or `rest` where no other reaches the threshold.

    >>> classes_at(torch.tensor([[[0.8, 0.3]], [[0.2, 0.7]]]), 0, 0.5).tolist()
    [[0, 1]]
    """
    if rest is None or threshold is None:
        return scores.argmax(0)
    others = scores.clone()
    others[rest] = threshold
    found = others.argmax(0)
    return torch.where(others.amax(0) > threshold, found, torch.full_like(found, rest))


def average_precisions(
    scores: Float[Tensor, "classes height width"], truth: Int[Tensor, "height width"]
) -> NDArray[np.float64]:
    """Return the average precision of each class over the pixels of an image; NaN for a class that it does not have.

    Scores that are equal everywhere have the class's share of the pixels.

    Args:
        scores: in [0, 1].
    """
    found = np.full(len(scores), np.nan)
    for i, of in enumerate(scores):
        own = truth == i
        if own.any():
            found[i] = float(binary_average_precision(of.flatten(), own.flatten().int(), validate_args=False))
    return found


def exchanged_owners(owners: Sequence[int]) -> list[int]:
    """Return owners with the words of each class given to the next class that has words.

    >>> exchanged_owners([1, 1, 2, 4])
    [2, 2, 4, 1]
    """
    own = sorted(set(owners))
    following = dict(zip(own, own[1:] + own[:1], strict=True))
    return [following[one] for one in owners]
