"""A linear (1 x 1) readout of depth from maps of frozen features, in closed form.

The target of a place is the mean depth of its part of the truth; predictions are resized to the truth, so that scores
are those of its own pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthReadout:
    """A fitted readout."""

    weight: Float[Tensor, " channels"]
    """Weights of the features as they are, not standardised; float64."""
    bias: Float[Tensor, ""]

    def predict(
        self, maps: Float[Tensor, "channels height width"], size: tuple[int, int]
    ) -> Float[Tensor, "rows cols"]:
        """Return the depth of each pixel, in units of the truth and at its size."""
        depth = torch.einsum("c,chw->hw", self.weight, maps.double()) + self.bias
        return interpolate(depth[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].float()


def mean_depth(
    truth: Float[Tensor, "rows cols"], size: tuple[int, int]
) -> tuple[Float[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Return the mean depth of the known pixels in each place of a map, and their share; NaN is unknown."""
    known = truth.isfinite()
    share = adaptive_avg_pool2d(known[None].double(), size)[0]
    total = adaptive_avg_pool2d(torch.where(known, truth, 0)[None].double(), size)[0]
    return total / share.clamp(min=1e-12), share


def fit_depth_readout(
    maps: Float[Tensor, "images channels height width"], truth: Sequence[Tensor], *, l2: float
) -> DepthReadout:
    """Fit a readout by weighted ridge regression: mean squared error, plus `l2` times the squared weights.

    Channels are standardised over the known places, so that one `l2` serves all cells; places weigh as much as they
    have known pixels. The bias has no penalty.

    Args:
        truth: depth of each pixel of each image, (rows, cols); NaN where it is unknown.
        l2: strength of the penalty, above 0.

    Raises: NonFinite for features that are not finite; ConfigError for other numbers of maps and truths, truth without
        a known pixel, or `l2` of 0 or less.
    """
    if len(maps) != len(truth):
        raise ConfigError(f"depth readout: {len(maps)} maps, {len(truth)} depth maps.")
    if not l2 > 0:
        raise ConfigError(f"l2={l2} is out of range: more than 0.")
    if not maps.isfinite().all():
        raise NonFinite("depth readout: a feature is not finite.")
    size = (maps.shape[2], maps.shape[3])
    targets = [mean_depth(one, size) for one in truth]
    depth = torch.stack([one for one, _ in targets]).flatten()
    share = torch.stack([known for _, known in targets]).flatten()
    if not share.sum() > 0:
        raise ConfigError("depth readout: no pixel of the truth is known.")
    share = share / share.sum()
    shares, depths = share.unflatten(0, (len(maps), -1)), (depth - share @ depth).unflatten(0, (len(maps), -1))
    # image by image, since all rows in float64 can need more memory than the maps
    mean = sum((one.double().flatten(1) @ known for one, known in zip(maps, shares, strict=True)), torch.zeros(()))
    width, level = maps.shape[1], share @ depth
    gram, moment = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for one, known, target in zip(maps, shares, depths, strict=True):
        rows = one.double().flatten(1) - mean[:, None]
        gram += (rows * known) @ rows.T
        moment += (rows * known) @ target
    std = gram.diagonal().sqrt().clamp(min=1e-6)
    gram = gram / std[:, None] / std + l2 * torch.eye(width, dtype=torch.float64)
    weight = torch.linalg.solve(gram, moment / std) / std
    return DepthReadout(weight=weight, bias=level - weight @ mean)
