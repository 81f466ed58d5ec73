"""Initial values of an autoencoder: the geometric median of the features, and dictionary rows from samples."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def geometric_median(
    x: Float[Tensor, "samples d_in"], *, tolerance: float = 1e-6, max_iterations: int = 200
) -> Float[Tensor, " d_in"]:
    """Return the point with the least sum of distances to the samples, float64; robust to outliers.

    Source: Weiszfeld 1937, with the correction of Vardi and Zhang 2000 where the estimate meets a sample.
    """
    x = x.double()
    centre = x.mean(0)
    for _ in range(max_iterations):
        distance = (x - centre).norm(dim=1)
        far = distance > 0
        weight = torch.where(far, 1 / distance.clamp(min=torch.finfo(x.dtype).tiny), 0)
        if not far.any():
            return centre
        target = (weight[:, None] * x).sum(0) / weight.sum()
        pull = float((weight[:, None] * (x - centre)).sum(0).norm())
        here = float((~far).sum())  # samples at the estimate reduce the step
        share = 1.0 if here == 0 else max(0.0, 1 - here / pull) if pull > 0 else 0.0
        moved = share * (target - centre)
        centre = centre + moved
        if float(moved.norm()) <= tolerance * (1 + float(centre.norm())):
            break
    return centre


DRAWN = 1 << 24
"""Numbers drawn at once for a part of a dictionary."""


def random_rows(n_latents: int, d_in: int, *, seed: int, rows: range | None = None) -> Float[Tensor, "rows d_in"]:
    """Return random unit rows of a dictionary, or a part of them: bit for bit the rows that the whole one has.

    Args:
        n_latents, d_in: shape of the whole dictionary.
        seed: seed of the rows.
        rows: numbers of the rows to return; None for all. The numbers of all rows up to the last one are drawn, a part
            at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    if rows is None or len(rows) == n_latents:
        return F.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1)
    # torch draws normal numbers in blocks of 16, and the end of a tensor that is not a multiple of 16 anew: parts of 16
    # rows, of which the last is as long as the rest, therefore give the numbers of the whole
    step, found, start = max(DRAWN // d_in // 16, 1) * 16, [], 0
    while start < rows.stop:
        stop = start + step if start + 2 * step <= n_latents else n_latents
        drawn = torch.randn(stop - start, d_in, generator=generator)
        own = drawn[max(rows.start - start, 0) : max(rows.stop - start, 0)]
        if len(own):
            found.append(F.normalize(own, dim=1))
        start = stop
    return torch.cat(found)


def blend_datapoints(
    directions: Float[Tensor, "rows d_in"],
    centred: Float[Tensor, "samples d_in"],
    blend: float,
    *,
    seed: int,
    first: int = 0,
) -> Float[Tensor, "rows d_in"]:
    """Mix random unit directions with directions of samples: blend * sample + (1 - blend) * random, unit norm.

    Samples are used in a seeded order, repeatedly if there are fewer samples than latents; the random part keeps rows
    from one sample different.

    Args:
        first: number of the first row, where `directions` are a part of a dictionary.
    """
    order = torch.randperm(centred.shape[0], generator=torch.Generator().manual_seed(seed))
    rows = order[torch.arange(first, first + directions.shape[0]) % centred.shape[0]]
    samples = F.normalize(centred[rows.to(centred.device)].to(directions), dim=1)
    return F.normalize(blend * samples + (1 - blend) * directions, dim=1)
