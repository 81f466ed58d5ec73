"""Scores of caption regressors on one split: explained variance, retrieval in both directions, group bootstrap.

Every score is a ratio of sums over samples, so that a resample of groups needs the sums of each group alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import EmptyClass
from diffprobe.core.groups import Groups
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.caption.base import CAPTIONS

R2 = "r2"
RANKS = (1, 10)
"""Numbers of results among which the own one has to be."""
CAPTION_RECALL, IMAGE_RECALL = "caption_recall_{}", "image_recall_{}"
"""Names of the recall of the caption of an image, and of the image of a caption."""
_BLOCK = 16_000_000
"""Largest number of scores of image and caption that are held at once."""


class Ratio(NamedTuple):
    """A score: the sum of one number per sample over that of another, float64 (samples)."""

    above: NDArray[np.float64]
    below: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The score of all samples; NaN where it is not defined."""
        below = float(self.below.sum())
        return float(self.above.sum()) / below if below else float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSplit:
    """Features and captions of a split.

    Attributes:
        features: of each sample.
        captions: embeddings of the different captions.
        caption: row of `captions` of each sample.
    """

    features: Float[Tensor, "samples d"]
    captions: Float[Tensor, "captions w"]
    caption: Int[Tensor, " samples"]

    def require_several(self, split: str) -> None:
        """Check that there is something to retrieve. Raises: EmptyClass for fewer than two captions."""
        if len(self.captions) < 2:
            raise EmptyClass(
                f"split '{split}' has {len(self.features)} samples with {len(self.captions)} different captions; a "
                "retrieval needs at least 2.",
                fix="a split with more samples",
            )


@torch.no_grad()
def score_split(probe: CaptionRegressor, split: ScoredSplit, ranks: Sequence[int] = RANKS) -> dict[str, Ratio]:
    """Return the scores of a probe; `ranks` are the k of its recalls.

    r2 is 1 - sum |h - f(caption)|^2 / sum |h - m|^2 with the mean m of the training set, in the unit of the features:
    dimensions count by their variance, and predicting m gives 0. A map from features has none.

    The recall of a caption among k: whether fewer than k other captions of the split fit the image as well as its own.
    The recall of an image: whether fewer than k images with another caption fit the caption as well as the best image
    that has it; each sample asks with its own caption. A tie counts as wrong.
    """
    found: dict[str, Ratio] = {}
    h, rows = split.features, split.caption
    if probe.reads == CAPTIONS:
        expected = probe.features_of(split.captions)[rows].double()
        errors = (h.double() - expected).square().sum(1)
        spread = (h.double() - probe.feature_mean.double()).square().sum(1)
        found[R2] = Ratio((spread - errors).cpu().numpy(), spread.cpu().numpy())
    caption_rank, image_rank = _ranks(probe, split)
    one = np.ones(len(h))
    for name, rank in ((CAPTION_RECALL, caption_rank), (IMAGE_RECALL, image_rank)):
        for k in ranks:
            found[name.format(k)] = Ratio((rank < k).double().cpu().numpy(), one)
    return found


def _ranks(probe: CaptionRegressor, split: ScoredSplit) -> tuple[Tensor, Tensor]:
    """Return for each sample how many others come before its own caption, and before the image of its caption."""
    h, rows = split.features, split.caption
    n, m = len(h), len(split.captions)
    of_caption = torch.empty(n, dtype=torch.int64, device=h.device)
    for at in torch.arange(n, device=h.device).split(max(1, _BLOCK // m)):
        scores = probe.scores(h[at], split.captions)
        own = scores.gather(1, rows[at, None])
        of_caption[at] = (scores >= own).sum(1) - 1
    of_image = torch.empty(m, dtype=torch.int64, device=h.device)
    for at in torch.arange(m, device=h.device).split(max(1, _BLOCK // n)):
        scores = probe.scores(h, split.captions[at])
        same = rows[:, None] == at
        best = scores.masked_fill(~same, float("-inf")).amax(0)
        of_image[at] = ((scores >= best) & ~same).sum(0)
    return of_caption, of_image[rows]


def chance(split: ScoredSplit, ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """Return the recalls of a random order, among each k of `ranks`."""
    n, m = len(split.features), len(split.captions)
    count = torch.bincount(split.caption, minlength=m).double()[split.caption]  # images that have the caption
    found = {}
    for k in ranks:
        found[CAPTION_RECALL.format(k)] = min(k / m, 1.0)
        missed = torch.ones_like(count)
        for i in range(min(k, n)):
            missed *= ((n - i - count) / (n - i)).clamp(min=0)
        found[IMAGE_RECALL.format(k)] = float(1 - missed.mean())
    return found


def group_intervals(
    scores: Mapping[str, Ratio], groups: Groups, *, n_resamples: int, level: float, seed: int
) -> tuple[dict[str, tuple[float, float]], dict[tuple[str, str], tuple[float, float]]]:
    """Return percentile intervals from resampling whole groups.

    Args:
        scores: of the same samples, by name.
        groups: group of each sample.

    Returns: the interval of each score, and of the difference of each pair of scores, paired: each resample holds the
        same groups for all. Nothing for fewer than two groups.
    """
    if groups.n < 2:
        return {}, {}
    drawn = np.random.default_rng(seed).integers(groups.n, size=(n_resamples, groups.n))
    places = drawn + groups.n * np.arange(n_resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=groups.n * n_resamples).reshape(n_resamples, groups.n)
    values = {}
    for name, ratio in scores.items():
        above, below = (counts @ groups.sums(part[:, None])[:, 0] for part in ratio)
        values[name] = np.divide(above, below, out=np.full(n_resamples, np.nan), where=below != 0)

    def ends(found: NDArray[np.float64]) -> tuple[float, float]:
        known = found[~np.isnan(found)]
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (np.nan, np.nan)
        return float(low), float(high)

    pairs = {(one, other): ends(values[one] - values[other]) for one in values for other in values if one != other}
    return {name: ends(found) for name, found in values.items()}, pairs
