"""The held-out samples at the two ends of a direction: those with the largest and the smallest projections.

The direction itself comes from `probes/direction/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True)
class ExtremeSample:
    """A sample at one end of a direction."""

    key: str
    """The sample's key."""
    caption: str
    """The sample's caption."""
    projection: float
    """Signed length of the feature along the direction, in the unit of the feature."""


@dataclass(frozen=True, kw_only=True)
class DirectionExtremes:
    """The samples at both ends of a direction, the most extreme first."""

    positive: tuple[ExtremeSample, ...]
    """Samples with the largest projections."""
    negative: tuple[ExtremeSample, ...]
    """Samples with the smallest projections."""


def direction_extremes(
    projections: Float[Tensor, " n"],
    keys: Sequence[str],
    captions: Sequence[str],
    *,
    n_each: int = 8,
    group_by: Sequence[str] | None = None,
) -> DirectionExtremes:
    """Return the samples at the two ends of a direction.

    Args:
        projections: projection of each sample; larger is further on the positive side. Use samples on which the
            direction was not fitted: on its training samples the ends look cleaner than they are.
        keys: key of each sample; ties in the projection are ordered by key.
        captions: caption of each sample.
        n_each: samples per end.
        group_by: group of each sample (for example its base); only the most extreme sample of a group is returned per
            end, so that variants of one drawing do not fill it.
    Returns: at most `n_each` samples per end, at most half of the groups (rounded up), and no sample at both ends.
    Raises: ConfigError if the lengths differ, NonFinite on NaN.

    >>> ends = direction_extremes(torch.tensor([0.1, 3.0, -2.0]), ["a", "b", "c"], ["cat", "dog", "cow"], n_each=1)
    >>> ends.positive[0].caption, ends.negative[0].caption
    ('dog', 'cow')
    """
    groups = list(keys) if group_by is None else list(group_by)
    if not len(projections) == len(keys) == len(captions) == len(groups):
        raise ConfigError(
            "the ends of a direction need one projection, key, caption and group per sample.",
            f"projections: {len(projections)}  keys: {len(keys)}  captions: {len(captions)}  groups: {len(groups)}",
        )
    if n_each < 1:
        raise ConfigError(f"n_each={n_each}: allowed: at least 1 sample per end.")
    if not torch.isfinite(projections).all():
        raise NonFinite("the projections on a direction contain NaN or infinity.")
    numbers = projections.detach().to("cpu", torch.float64).tolist()
    order = sorted(range(len(keys)), key=lambda i: (-numbers[i], keys[i]))
    half = (len(keys) + 1) // 2  # of few samples, the ends meet in the middle and do not overlap
    n_each = min(n_each, (len(set(groups)) + 1) // 2)
    top = _distinct(order[:half], groups, n_each)
    bottom = _distinct(sorted(order[half:], key=lambda i: (numbers[i], keys[i])), groups, n_each)

    def sample(i: int) -> ExtremeSample:
        return ExtremeSample(key=keys[i], caption=captions[i], projection=numbers[i])

    return DirectionExtremes(positive=tuple(map(sample, top)), negative=tuple(map(sample, bottom)))


def _distinct(order: Sequence[int], groups: Sequence[str], n: int) -> list[int]:
    """Return the first `n` positions of `order` whose groups differ."""
    chosen: dict[str, int] = {}
    for i in order:
        if len(chosen) == n:
            break
        chosen.setdefault(groups[i], i)
    return list(chosen.values())
