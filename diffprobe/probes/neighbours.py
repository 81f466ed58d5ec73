"""The k nearest training samples of each query: exact, in blocks of bounded memory, with a stated rule for ties.

Distances are computed in float64 and compared after rounding to multiples of 2^-30, about 1e-9; of equal ones the
earlier row is the nearer. Rounding makes the result independent of the sizes of blocks and batches, which change the
last bits of a matrix product.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

Distance = Literal["cosine", "euclidean"]
"""cosine: 1 - similarity, in 0..2, where a vector of zeros has the similarity 0 with all. euclidean: the squared
distance divided by the number of dimensions, which is 2 on average between standardised samples.
"""
_GRID = 2.0**30
_BLOCK = 2**22
"""Float64 numbers in each temporary matrix: 32 MiB."""


class Neighbours(NamedTuple):
    """The nearest training samples of some queries, the nearest first."""

    distance: Float[Tensor, "queries k"]
    """Their distances, float64."""
    row: Int[Tensor, "queries k"]
    """Their rows among the training samples."""


@torch.no_grad()
def nearest(
    x: Float[Tensor, "queries d_in"],
    among: Float[Tensor, "samples d_in"],
    *,
    k: int,
    metric: Distance = "euclidean",
    allowed: Sequence[Bool[Tensor, " samples"]] = (),
    block: int = _BLOCK,
) -> list[Neighbours]:
    """Find the nearest samples of each query, once for each mask; the distances are computed once for all masks.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [2.0]]), k=2)[0].row.tolist()
    [[1, 0]]

    Args:
        x: the queries, finite.
        among: the training samples, finite; their order decides ties.
        k: number of neighbours.
        metric: see `Distance`.
        allowed: masks of the samples that may be neighbours; () for one search among all.
        block: numbers in each temporary matrix. It does not change the result.

    Returns: the neighbours for each mask.
    Raises: ConfigError for k below 1 or above the samples of a mask; NonFinite for queries with NaN or infinity.
    """
    n, d_in = among.shape
    masks = list(allowed) or [torch.ones(n, dtype=torch.bool, device=among.device)]
    for mask in masks:
        require_enough(k, int(mask.sum()))
    bad = ~torch.isfinite(x).all(1)
    if bad.any():
        raise NonFinite(
            f"{int(bad.sum())} of {len(x)} queries have NaN or infinity; the first is row {int(bad.nonzero()[0])}."
        )
    partial = [not bool(mask.all()) for mask in masks]
    rows = min(max(block // max(d_in, 1), 1), n)
    queries = max(block // max(rows + k, d_in), 1)
    parts: list[list[Neighbours]] = [[] for _ in masks]
    for start in range(0, len(x), queries):
        found: list[Neighbours | None] = [None] * len(masks)
        for first, distance in _distances(x[start : start + queries], among, metric, rows):
            at = torch.arange(first, first + distance.shape[1], device=distance.device).expand_as(distance)
            for i, mask in enumerate(masks):
                own = distance
                if partial[i]:
                    own = distance.masked_fill(~mask[first : first + distance.shape[1]], torch.inf)
                before = found[i]
                if before is None:
                    found[i] = _smallest(own, at, k)
                else:
                    found[i] = _smallest(torch.cat([before.distance, own], 1), torch.cat([before.row, at], 1), k)
        for into, part in zip(parts, found, strict=True):
            into += [] if part is None else [part]
    empty = Neighbours(among.new_zeros((0, k), dtype=torch.float64), among.new_zeros((0, k), dtype=torch.int64))
    return [Neighbours(*map(torch.cat, zip(*part, strict=True))) if part else empty for part in parts]


def require_enough(k: int, n: int) -> None:
    """Refuse a number of neighbours that the training samples do not have. Raises: ConfigError."""
    if k < 1:
        raise ConfigError(f"k={k} is out of range: at least 1.")
    if k > n:
        raise ConfigError(
            f"k={k} neighbours of {n} training samples with a label.", fix=f"probe.params.k={max(n, 1)} or less"
        )


def _distances(x: Tensor, among: Tensor, metric: Distance, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row of each block of samples, and the distances (queries, rows) to it."""
    own = _prepared(x, metric)
    for first in range(0, len(among), rows):
        other = _prepared(among[first : first + rows], metric)
        distance = own @ other.T
        if metric == "cosine":
            distance = distance.neg_().add_(1.0)
        else:
            norms = own.square().sum(1)[:, None] + other.square().sum(1)
            distance = distance.mul_(-2.0).add_(norms).div_(own.shape[1])
        yield first, distance.mul_(_GRID).round_().div_(_GRID).clamp_(min=0.0)


def _prepared(x: Tensor, metric: Distance) -> Tensor:
    exact = x.double()
    return torch.nn.functional.normalize(exact, dim=1, eps=1e-300) if metric == "cosine" else exact


def _smallest(distance: Tensor, row: Tensor, k: int) -> Neighbours:
    """Return the k smallest distances and their rows; equal ones in the order of the columns, which is that of rows."""
    if distance.shape[1] <= k:
        found, column = distance.sort(dim=1, stable=True)
        return Neighbours(found, row.gather(1, column))
    found, column = distance.topk(k, dim=1, largest=False)
    tied = (distance <= found.max(1, keepdim=True).values).sum(1) > k  # topk takes any of those that tie for the last
    if tied.any():
        column[tied] = distance[tied].sort(dim=1, stable=True).indices[:, :k]
    column = column.sort(dim=1).values
    found, order = distance.gather(1, column).sort(dim=1, stable=True)
    return Neighbours(found, row.gather(1, column.gather(1, order)))
