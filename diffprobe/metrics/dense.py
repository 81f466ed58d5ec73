"""Scores of dense predictions, from counts of each image: IoU of classes, and errors of depth.

Counts add up over images, so scores are exact however images are split over batches, and resamples of images cost no
second pass. The mean IoU of a data set has two meanings, which are not close for small objects: that of the counts of
all images together (`pooled`, as VOC and ADE20K are scored), and the mean over images (`per_image`).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from diffprobe.core.errors import ConfigError, NonFinite

Averaging = Literal["pooled", "per_image"]
"""Counts of all images together, or the mean over images."""
DEPTH_PARTS = ("n", "within", "relative", "squared")
"""Sums of the pixels of an image: their number, those within 1.25, |error| / depth, and error squared."""


def image_confusion(
    predicted: Int[Tensor, "height width"],
    truth: Int[Tensor, "true_height true_width"],
    n_classes: int,
    *,
    ignored: int | None = None,
) -> NDArray[np.int64]:
    """Return the pixels of an image by class, [true, predicted].

    Args:
        ignored: pixels with this number in the truth are left out.

    Raises: ConfigError for maps of two sizes, or a class out of range.
    """
    if predicted.shape != truth.shape:
        raise ConfigError(f"the prediction has {tuple(predicted.shape)} pixels, the truth {tuple(truth.shape)}.")
    if ignored is not None:
        predicted, truth = predicted[truth != ignored], truth[truth != ignored]
    for what, values in (("prediction", predicted), ("truth", truth)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < n_classes:
            raise ConfigError(
                f"the {what} has classes from {int(values.min())} to {int(values.max())}.",
                f"allowed: from 0 to {n_classes - 1}",
            )
    counts = multiclass_confusion_matrix(predicted, truth, num_classes=n_classes, validate_args=False)
    return counts.numpy().astype(np.int64)


def class_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union of each class; NaN where a class is neither true nor predicted.

    Args:
        counts: (..., classes, classes), [true, predicted].

    >>> class_iou(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).round(3).tolist()
    [0.667, 0.5, nan]
    """
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hit
    return np.divide(hit, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean IoU over the classes that are true or predicted somewhere; NaN without any."""
    iou = class_iou(counts)
    known = ~np.isnan(iou)
    n = known.sum(-1)
    return np.divide(np.where(known, iou, 0).sum(-1), n, out=np.full(n.shape, np.nan), where=n > 0)


def depth_sums(
    predicted: Float[Tensor, "height width"], truth: Float[Tensor, "true_height true_width"]
) -> NDArray[np.float64]:
    """Return the sums `DEPTH_PARTS` over the pixels of an image whose true depth is above 0.

    Raises: ConfigError for maps of two sizes; NonFinite for a prediction that is not finite.
    """
    if predicted.shape != truth.shape:
        raise ConfigError(f"the prediction has {tuple(predicted.shape)} pixels, the truth {tuple(truth.shape)}.")
    if not predicted.isfinite().all():
        raise NonFinite("the predicted depth is not finite.")
    known = truth > 0
    true, found = truth[known].double(), predicted[known].double()
    error = (found - true).abs()
    positive = found.clamp(min=torch.finfo(torch.float64).tiny)
    ratio = torch.maximum(positive / true, true / positive)
    sums = [known.sum(), (ratio < 1.25).sum(), (error / true).sum(), (error**2).sum()]
    return np.array([float(one) for one in sums])


def depth_scores(sums: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    """Return delta1, AbsRel and RMSE of summed `DEPTH_PARTS`, (..., 4); definitions of Eigen et al. (1406.2283)."""
    n, within, relative, squared = np.moveaxis(sums, -1, 0)
    return {"delta1": within / n, "abs_rel": relative / n, "rmse": np.sqrt(squared / n)}
