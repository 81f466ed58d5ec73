"""A linear (1 x 1) readout of classes from maps of frozen features, fitted on all places of the images at once.

The target of a place is the share of each class in its part of the truth, so that the readout needs no truth at the
resolution of the map; its logits are resized to that of the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, log_softmax, one_hot

from diffprobe.core.errors import ConfigError, NonFinite

MOST_PLACES = 65_536
"""Largest number of places that a readout is fitted on; of more, a seeded sample is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """A fitted readout."""

    weight: Float[Tensor, "classes channels"]
    """Weights of the features as they are, not standardised."""
    bias: Float[Tensor, " classes"]

    def predict(self, maps: Float[Tensor, "channels height width"], size: tuple[int, int]) -> Int[Tensor, "rows cols"]:
        """Return the class of each pixel, at the size of the truth."""
        logits = torch.einsum("kc,chw->khw", self.weight, maps.float()) + self.bias[:, None, None]
        return interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def class_shares(
    truth: Int[Tensor, "rows cols"], n_classes: int, size: tuple[int, int]
) -> Float[Tensor, "classes height width"]:
    """Return the share of each class in each place of a map of some size.

    Pixels with a number of no class, as ignored ones have, belong to none: shares add up to the known part of a place.
    """
    known = truth < n_classes
    planes = one_hot(torch.where(known, truth, 0).long(), n_classes) * known[..., None]
    return adaptive_avg_pool2d(planes.permute(2, 0, 1).float(), size)


def fit_readout(
    maps: Float[Tensor, "images channels height width"],
    truth: Sequence[Tensor],
    n_classes: int,
    *,
    l2: float,
    steps: int,
    seed: int,
) -> Readout:
    """Fit a readout by L-BFGS: cross-entropy of the shares, plus `l2` / 2 times the squared weights.

    Channels are standardised over the places that are fitted, so that one `l2` serves all cells. A place weighs as
    much as it has known pixels.

    Args:
        truth: class map of each image, (rows, cols); a number of no class is unknown.
        l2: strength of the penalty, above 0.
        steps: largest number of iterations.
        seed: of the sample of places.

    Raises: NonFinite for features that are not finite; ConfigError for other numbers of maps and truths, or
        truth without a known pixel.
    """
    if len(maps) != len(truth):
        raise ConfigError(f"readout: {len(maps)} maps, {len(truth)} class maps.")
    if not maps.isfinite().all():
        raise NonFinite("readout: a feature is not finite.")
    height, width = maps.shape[2:]
    shares = torch.stack([class_shares(one, n_classes, (height, width)) for one in truth])
    targets = shares.permute(0, 2, 3, 1).flatten(0, 2)
    places = (targets.sum(1) > 0).nonzero()[:, 0]
    if not len(places):
        raise ConfigError("readout: no pixel of the truth has a class.")
    if len(places) > MOST_PLACES:
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:MOST_PLACES]]
    image, row = places // (height * width), places // width % height
    rows, targets = maps[image, :, row, places % width].float(), targets[places]
    mean, std = rows.mean(0), rows.std(0, correction=0).clamp(min=1e-6)
    rows = (rows - mean) / std
    total = targets.sum()
    weight = torch.zeros(n_classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -(targets * log_softmax(rows @ weight.T + bias, 1)).sum() / total + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    final = weight.detach() / std
    return Readout(weight=final, bias=bias.detach() - final @ mean)
