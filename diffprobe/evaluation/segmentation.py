"""`diffprobe eval segmentation`: the class of each pixel, read from the features of each cell of a frozen model.

The readouts are linear (1 x 1) or a small convolutional head, and the labelled images are few: nested sets drawn by
group. Settings are in `segmentation_settings.py`; fits, choice and records are those of all dense truth
(`dense_readouts.py`, `dense_scores.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic, mean_of
from diffprobe.evaluation.dense_readouts import evaluate_dense
from diffprobe.evaluation.dense_scores import Predict, Score
from diffprobe.evaluation.segmentation_settings import SegmentationEvaluation

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

_Array = NDArray[np.float64]


def evaluate_segmentation(config: SegmentationEvaluation) -> Path:
    """Fit and score all readouts, write `result.json`, and return its path.

    Raises: SampleError for a sample without a mask, with one of another size or with a value of no class; the errors of
        `evaluate_dense`.
    """
    return evaluate_dense(config, ClassTask(config))


class ClassTask:
    """Classes of pixels, scored by the mean IoU of all images together, and over images."""

    kind = "segmentation"

    def __init__(self, config: SegmentationEvaluation) -> None:
        self.config = config
        self.n_classes = len(config.classes)
        self.probe = "linear_1x1" if config.head == "linear" else "convolutional_3x3"
        self.scores = (
            Score(name="miou_pooled", statistic=pooled_miou), Score(name="miou_per_image", statistic=per_image_miou)
        )  # fmt: skip

    def read(self, request: "Request", split: str, n: int) -> "Sequence[DenseSample]":
        """Return the first samples of a split with their class maps."""
        from diffprobe.shards.class_maps import read_class_samples

        return list(
            read_class_samples(
                request.view, split, classes=self.config.classes, ignore=self.config.ignore, fields=request.fields,
                resolution=request.plan.resolution, limit=n, caps=self.config.data.caps,
            )
        )  # fmt: skip

    def truth(self, sample: "DenseSample") -> "Tensor":
        """Return the class of each pixel, int64 (rows, cols)."""
        import torch

        return torch.from_numpy(sample.truth.astype(np.int64))

    def fit(self, maps: "Tensor", truth: "Sequence[Tensor]", penalty: float) -> Predict:
        """Return a fitted readout."""
        import torch

        from diffprobe.probes.dense.convolutional_head import fit_convolutional_head
        from diffprobe.probes.dense.readout import class_shares, fit_readout

        steps, seed = self.config.n_steps, self.config.seed
        if self.config.head == "linear":
            return fit_readout(maps, truth, self.n_classes, l2=penalty, steps=steps, seed=seed).predict
        size = (maps.shape[2], maps.shape[3])
        shares = torch.stack([class_shares(one, self.n_classes, size) for one in truth])
        return fit_convolutional_head(maps, shares, steps=steps, weight_decay=penalty, seed=seed).predict

    def by_place(self, truth: "Sequence[Tensor]", size: tuple[int, int]) -> Predict:
        """Return what predicts the class that is the most frequent one at each position."""
        import torch
        from torch.nn.functional import interpolate

        from diffprobe.probes.dense.readout import class_shares

        shares = torch.stack([class_shares(one, self.n_classes, size) for one in truth]).mean(0, keepdim=True)

        def predict(_: "Tensor", size: tuple[int, int]) -> "Tensor":
            return interpolate(shares, size=size, mode="bilinear", align_corners=False)[0].argmax(0)

        return predict

    def by_mean(self, maps: "Tensor", truth: "Sequence[Tensor]") -> Predict:
        """Return what predicts the class whose mean of the values is the nearest one."""
        import torch
        from torch.nn.functional import interpolate

        from diffprobe.probes.dense.readout import class_shares

        size = (maps.shape[2], maps.shape[3])
        shares = torch.stack([class_shares(one, self.n_classes, size) for one in truth])
        totals = shares.sum((0, 2, 3))
        means = torch.einsum("nkhw,nchw->kc", shares, maps) / totals.clamp(min=1e-9)[:, None]
        means[totals == 0] = torch.inf  # a class that no labelled image has

        def predict(values: "Tensor", size: tuple[int, int]) -> "Tensor":
            distances = (values[None] - means[:, :, None, None]).square().sum(1)
            near = distances.clamp(max=1e9)
            return interpolate(-near[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)

        return predict

    def count(self, predicted: "Tensor", truth: "Tensor") -> _Array:
        """Return the confusion of an image, (classes, classes)."""
        from diffprobe.metrics.dense import image_confusion
        from diffprobe.shards.class_maps import IGNORED

        return image_confusion(predicted, truth, self.n_classes, ignored=IGNORED).astype(np.float64)

    def detail(self, counts: Sequence[_Array]) -> dict[str, object]:
        """Return the IoU of each class, the mean over draws; classes that no test image has are left out."""
        from diffprobe.metrics.dense import class_iou

        iou = np.mean([class_iou(one.sum(0)) for one in counts], axis=0)
        found = {name: float(v) for name, v in zip(self.config.classes, iou, strict=True) if not np.isnan(v)}
        return {"iou_pooled": found}


def pooled_miou(counts: _Array) -> SumStatistic:
    """Return the mean IoU over classes of the counts of all images together; counts are (images, classes, classes)."""
    from diffprobe.metrics.dense import mean_iou

    n = counts.shape[-1]
    return SumStatistic(
        parts=counts.reshape(len(counts), -1), value=lambda sums: mean_iou(sums.reshape(-1, n, n))
    )  # fmt: skip


def per_image_miou(counts: _Array) -> SumStatistic:
    """Return the mean over images of the mean IoU of each; images without a known pixel are left out."""
    from diffprobe.metrics.dense import mean_iou

    values = mean_iou(counts)
    known = ~np.isnan(values)
    return mean_of(np.where(known, values, 0), known.astype(np.float64))
