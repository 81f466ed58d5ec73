"""`diffprobe eval depth`: the depth of each pixel, read linearly from the features of each cell of a frozen model.

Pixels whose number in `depth.png` is 0 have no known depth: they are neither fitted nor scored. In rendered scenes that
is the background, and depth is a level of what is drawn: larger is nearer, by the row on which a thing stands and then
by the order of drawing. Settings are in `depth_settings.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.dense_readouts import evaluate_dense
from diffprobe.evaluation.dense_scores import Predict, Score
from diffprobe.evaluation.depth_settings import DepthEvaluation

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

_Array = NDArray[np.float64]
MOST_LEVELS = 64
"""Most levels of an image whose pixels are compared in pairs."""


def evaluate_depth(config: DepthEvaluation) -> Path:
    """Fit and score all readouts, write `result.json`, and return its path.

    Raises: SampleError for a sample without `depth.png`, or with one of another size; ConfigError for `levels` and
        truth of more than `MOST_LEVELS` levels in an image; the errors of `evaluate_dense`.
    """
    return evaluate_dense(config, DepthTask(config))


class DepthTask:
    """Depth of pixels, scored over the known pixels of all images together."""

    kind = "depth"
    probe = "linear_1x1"

    def __init__(self, config: DepthEvaluation) -> None:
        self.config = config
        rmse = Score(name="rmse", statistic=depth_statistic("rmse"), higher_is_better=False)
        ratios = (
            Score(name="abs_rel", statistic=depth_statistic("abs_rel"), higher_is_better=False),
            Score(name="delta1", statistic=depth_statistic("delta1")),
        )
        self.gaps = (0, config.order_gap) if config.order_gap > 1 else (0,)
        orders = tuple(
            Score(name=f"order_gap{gap}" if gap else "order", statistic=order_statistic(at))
            for at, gap in enumerate(self.gaps)
        )
        self.scores = (rmse, *(orders if config.levels else ratios))

    def read(self, request: "Request", split: str, n: int) -> "Sequence[DenseSample]":
        """Return the first samples of a split with their depth."""
        from diffprobe.shards.class_maps import read_depth_samples

        return list(
            read_depth_samples(
                request.view, split, fields=request.fields, resolution=request.plan.resolution, limit=n,
                caps=self.config.data.caps, wide=True,
            )
        )  # fmt: skip

    def truth(self, sample: "DenseSample") -> "Tensor":
        """Return the depth of each pixel, float32 (rows, cols), in units of the score; 0 is unknown."""
        import torch

        return torch.from_numpy(sample.truth.astype(np.float32)) * self.config.unit

    def fit(self, maps: "Tensor", truth: "Sequence[Tensor]", penalty: float) -> Predict:
        """Return a fitted readout."""
        from diffprobe.probes.dense.depth_readout import fit_depth_readout

        return fit_depth_readout(maps, [_unknown_as_nan(one) for one in truth], l2=penalty).predict

    def by_place(self, truth: "Sequence[Tensor]", size: tuple[int, int]) -> Predict:
        """Return what predicts the mean of the known depth at each position, and the overall mean where none is."""
        import torch
        from torch.nn.functional import interpolate

        from diffprobe.probes.dense.depth_readout import mean_depth

        found = [mean_depth(_unknown_as_nan(one), size) for one in truth]
        depth, share = (torch.stack(one) for one in zip(*found, strict=True))
        total = (depth * share).sum() / share.sum().clamp(min=1e-12)
        known = share.sum(0)
        means = torch.where(known > 0, (depth * share).sum(0) / known.clamp(min=1e-12), total)

        def predict(_: "Tensor", size: tuple[int, int]) -> "Tensor":
            return interpolate(means[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].float()

        return predict

    def by_mean(self, maps: "Tensor", truth: "Sequence[Tensor]") -> Predict:
        """Refuse: depth has no classes, and no setting asks for it. Raises: ConfigError."""
        raise ConfigError("controls: the nearest mean colour needs classes, and depth has none.")

    def count(self, predicted: "Tensor", truth: "Tensor") -> _Array:
        """Return the sums of an image: `DEPTH_PARTS`, and with `levels` `ORDER_PARTS` of each gap."""
        from diffprobe.metrics.dense import depth_sums
        from diffprobe.metrics.depth_order import order_sums

        sums = depth_sums(predicted, truth)
        if not self.config.levels:
            return sums
        known = truth > 0
        n = truth[known].unique().numel()
        if n > MOST_LEVELS:
            raise ConfigError(
                f"levels: an image has {n} of them, at most {MOST_LEVELS} are compared in pairs.", fix="levels=false"
            )
        pixels = predicted[known][None], truth[known][None]
        return np.concatenate([sums, *(order_sums(*pixels, gap=gap) for gap in self.gaps)])

    def detail(self, counts: Sequence[_Array]) -> dict[str, object]:
        """Return the number of scored pixels."""
        return {"n_pixels": int(counts[0][:, 0].sum())}


def depth_statistic(name: str) -> Callable[[_Array], SumStatistic]:
    """Return what makes a statistic of summed `DEPTH_PARTS`, (images, 4 or more): rmse, abs_rel or delta1."""
    from diffprobe.metrics.dense import depth_scores

    return lambda counts: SumStatistic(parts=counts[:, :4], value=lambda sums: depth_scores(sums)[name])


def order_statistic(place: int) -> Callable[[_Array], SumStatistic]:
    """Return what makes the share of pixel pairs in the right order, of all images together.

    Args:
        place: which of the `ORDER_PARTS` that follow `DEPTH_PARTS` in the counts.
    """
    from diffprobe.metrics.depth_order import order_accuracy

    first = 4 + 2 * place
    return lambda counts: SumStatistic(parts=counts[:, first : first + 2], value=order_accuracy)


def _unknown_as_nan(truth: "Tensor") -> "Tensor":
    import torch

    return torch.where(truth > 0, truth, torch.nan)
