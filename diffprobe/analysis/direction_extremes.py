"""The two ends of a direction, read on held-out samples.

Owns the choice of samples at the ends. The direction itself comes from `probes/direction/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True)
class PoleSample:
    """One sample at an end of a direction."""

    key: str
    """The sample's key."""
    caption: str
    """The sample's caption."""
    projection: float
    """Signed length of the feature along the direction, in the unit of the feature."""


@dataclass(frozen=True, kw_only=True)
class PoleCaptions:
    """Both ends of a direction, the most extreme sample first."""

    positive: tuple[PoleSample, ...]
    """Samples with the largest projections."""
    negative: tuple[PoleSample, ...]
    """Samples with the smallest projections."""


def pole_captions(
    projections: Float[Tensor, " n"],
    keys: Sequence[str],
    captions: Sequence[str],
    *,
    n_each: int = 8,
    group_by: Sequence[str] | None = None,
) -> PoleCaptions:
    """Choose the samples at the two ends of a direction.

    Args:
        projections: one number a held-out sample, larger is nearer to the positive pole. Pass samples on which the
            direction was not fitted: on its own training samples the ends look cleaner than they are.
        keys: one key a sample; ties in the projection are ordered by key.
        captions: one caption a sample.
        n_each: samples at each end.
        group_by: a group a sample (for example its base), of which only the most extreme member is shown, so that
            variants of one drawing do not fill an end.
    Returns: at most `n_each` samples an end, and no more than half of the groups, rounded up: what is nearer to the
        middle is no end. No sample stands at both ends.
    Raises: ConfigError if the lengths differ, NonFinite on NaN.

    >>> ends = pole_captions(torch.tensor([0.1, 3.0, -2.0]), ["a", "b", "c"], ["cat", "dog", "cow"], n_each=1)
    >>> ends.positive[0].caption, ends.negative[0].caption
    ('dog', 'cow')
    """
    groups = list(keys) if group_by is None else list(group_by)
    if not len(projections) == len(keys) == len(captions) == len(groups):
        raise ConfigError(
            "the ends of a direction need one projection, key, caption and group a sample.",
            f"projections: {len(projections)}  keys: {len(keys)}  captions: {len(captions)}  groups: {len(groups)}",
        )
    if n_each < 1:
        raise ConfigError(f"n_each={n_each}: at least one sample an end.")
    if not torch.isfinite(projections).all():
        raise NonFinite("the projections on a direction hold NaN or infinity.")
    numbers = projections.detach().to("cpu", torch.float64).tolist()
    order = sorted(range(len(keys)), key=lambda i: (-numbers[i], keys[i]))
    half = (len(keys) + 1) // 2  # few samples: the ends meet in the middle instead of overlapping
    n_each = min(n_each, (len(set(groups)) + 1) // 2)
    top = _distinct(order[:half], groups, n_each)
    bottom = _distinct(sorted(order[half:], key=lambda i: (numbers[i], keys[i])), groups, n_each)

    def sample(i: int) -> PoleSample:
        return PoleSample(key=keys[i], caption=captions[i], projection=numbers[i])

    return PoleCaptions(positive=tuple(map(sample, top)), negative=tuple(map(sample, bottom)))


def _distinct(order: Sequence[int], groups: Sequence[str], n: int) -> list[int]:
    """Return the first `n` positions of `order` that bring a new group."""
    chosen: dict[str, int] = {}
    for i in order:
        if len(chosen) == n:
            break
        chosen.setdefault(groups[i], i)
    return list(chosen.values())
