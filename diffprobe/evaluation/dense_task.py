"""What a dense evaluation reads of each pixel: how it is fitted, counted and scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

Predict = Callable[["Tensor", tuple[int, int]], "Tensor"]
"""Map of an image, (channels, height, width), and size of the truth -> what is predicted of each of its pixels."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of the counts of images."""

    name: str
    """Name of the metric, without the number of labels."""
    statistic: Callable[[NDArray[np.float64]], SumStatistic]
    """Counts of images -> the score as a statistic over images."""
    higher_is_better: bool = True


class DenseTask(Protocol):
    """What is read of each pixel."""

    @property
    def kind(self) -> str:
        """Kind of the results."""

    @property
    def probe(self) -> str:
        """Name of the readout in the records."""

    @property
    def scores(self) -> Sequence[Score]:
        """The scores, from the counts of images; cells are chosen by the first one."""

    def read(self, request: "Request", split: str, n: int) -> "Sequence[DenseSample]":
        """Return the first samples of a split with their truth."""

    def truth(self, sample: "DenseSample") -> "Tensor":
        """Return the truth of a sample, (rows, cols)."""

    def fit(self, maps: "Tensor", truth: "Sequence[Tensor]", penalty: float) -> Predict:
        """Return a fitted readout."""

    def by_place(self, truth: "Sequence[Tensor]", size: tuple[int, int]) -> Predict:
        """Return what predicts the same for all images."""

    def by_mean(self, maps: "Tensor", truth: "Sequence[Tensor]") -> Predict:
        """Return what predicts the class of the nearest mean."""

    def count(self, predicted: "Tensor", truth: "Tensor") -> NDArray[np.float64]:
        """Return what the scores sum over images."""

    def detail(self, counts: Sequence[NDArray[np.float64]]) -> dict[str, object]:
        """Return what a test record holds beside its scores; counts are those of each draw, (images, ...)."""
