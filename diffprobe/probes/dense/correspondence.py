"""Where a point of one image is in another: the nearest neighbour among the places of a feature map.

DIFT (Tang et al. 2023, 2306.03881), section 3: both maps are upsampled to the size of the image, and the match of a
pixel is the pixel of the other image whose feature has the largest cosine similarity.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

_ROWS = 2**24
"""Largest number of values of an upsampled map that are held at once."""
_SMALLEST = 1e-12


def match_points(
    source: Float[Tensor, "d h w"],
    target: Float[Tensor, "d h2 w2"],
    points: Float64[Tensor, "n 2"],
    *,
    resolution: int,
) -> Float64[Tensor, "n 2"]:
    """Return the pixel of the target image that matches each point of the source image, as its centre (x, y).

    Maps are interpolated bilinearly (`align_corners=False`), as `torch.nn.functional.interpolate` does, to the pixels
    of the image; the first of equal similarities wins, in reading order. Since interpolation is linear, similarities
    are interpolated and divided by the norm of the interpolated feature: the same numbers, without an upsampled map in
    memory.

    Args:
        source, target: feature maps of both images.
        points: (x, y) in pixels of the source image, 0 <= x, y < resolution; a point is read at its pixel.
        resolution: height and width of both images in pixels.

    Raises: ConfigError for maps of different widths or points outside the image; NonFinite for maps with NaN or
        infinity.
    """
    if source.shape[0] != target.shape[0]:
        raise ConfigError(f"correspondence: features of {source.shape[0]} and {target.shape[0]} values.")
    if bool(((points < 0) | (points >= resolution)).any()):
        raise ConfigError(f"correspondence: a point is outside its image of {resolution} x {resolution} pixels.")
    for name, values in (("source", source), ("target", target)):
        if not bool(torch.isfinite(values).all()):
            raise NonFinite(f"correspondence: the {name} map is not finite.")
    source, target = source.float(), target.float()
    pixel = points.floor().long()
    across = interpolation(source.shape[2], resolution, source)[pixel[:, 0]]
    down = interpolation(source.shape[1], resolution, source)[pixel[:, 1]]
    queries = torch.einsum("nh,nw,dhw->nd", down, across, source)
    queries = queries / queries.norm(dim=1, keepdim=True).clamp_min(_SMALLEST)
    similar = torch.einsum("nd,dhw->nhw", queries, target)
    best = torch.full((len(points),), -torch.inf, device=target.device)
    place = torch.zeros(len(points), dtype=torch.long, device=target.device)
    columns = interpolation(target.shape[2], resolution, target)
    rows = interpolation(target.shape[1], resolution, target)
    step = max(1, _ROWS // (resolution * target.shape[0]))
    for start in range(0, resolution, step):
        part = rows[start : start + step]
        norms = torch.einsum("yh,xw,dhw->dyx", part, columns, target).norm(dim=0).clamp_min(_SMALLEST)
        found = (torch.einsum("yh,xw,nhw->nyx", part, columns, similar) / norms).flatten(1)
        value, index = found.max(dim=1)
        better = value > best
        best = torch.where(better, value, best)
        place = torch.where(better, index + start * resolution, place)
    x, y = place % resolution, place // resolution
    return torch.stack([x, y], dim=1).double().cpu() + 0.5


def interpolation(size: int, resolution: int, like: Tensor) -> Float[Tensor, "resolution size"]:
    """Return the weights of the places of a map for each pixel along one axis; each row sums to 1.

    >>> interpolation(2, 4, torch.zeros(())).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    place = ((torch.arange(resolution, dtype=torch.float64) + 0.5) * size / resolution - 0.5).clamp(0, size - 1)
    low = place.floor().long()
    share = place - low
    weights = torch.zeros(resolution, size, dtype=torch.float64)
    index = torch.arange(resolution)
    weights[index, low] += 1 - share
    weights[index, (low + 1).clamp(max=size - 1)] += share
    return weights.to(like.device, torch.float32)


def joined(
    maps: Sequence[Float[Tensor, "_ _ _"]], weights: Sequence[float] | None = None
) -> Float[Tensor, "total height width"]:
    """Return several maps of one image as one: each place has unit norm in each map, and all have the largest size.

    The way in which SD+DINO (Zhang et al. 2023, 2305.15347, section 3.3) fuses two encoders: the cosine of two joined
    features is the mean of their cosines in each map, with these weights.

    Args:
        weights: of the maps, positive with sum 1; None for equal ones.

    Raises: ConfigError for other weights.
    """
    shares = [1 / len(maps)] * len(maps) if weights is None else list(weights)
    if len(shares) != len(maps) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"weights {shares} of {len(maps)} joined maps: positive numbers with sum 1.")
    size = (max(one.shape[1] for one in maps), max(one.shape[2] for one in maps))
    parts = []
    for one, share in zip(maps, shares, strict=True):
        values = torch.nn.functional.interpolate(one[None].float(), size=size, mode="bilinear")[0]
        parts.append(share**0.5 * values / values.norm(dim=0, keepdim=True).clamp_min(_SMALLEST))
    return torch.cat(parts)
