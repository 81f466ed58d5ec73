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


def blend_datapoints(
    directions: Float[Tensor, "n_latents d_in"], centred: Float[Tensor, "samples d_in"], blend: float, *, seed: int
) -> Float[Tensor, "n_latents d_in"]:
    """Mix random unit directions with directions of samples: blend * sample + (1 - blend) * random, unit norm.

    Samples are used in a seeded order, repeatedly if there are fewer samples than latents; the random part keeps rows
    from one sample different.
    """
    order = torch.randperm(centred.shape[0], generator=torch.Generator().manual_seed(seed))
    rows = order.repeat(-(-directions.shape[0] // centred.shape[0]))[: directions.shape[0]]
    samples = F.normalize(centred[rows.to(centred.device)].to(directions), dim=1)
    return F.normalize(blend * samples + (1 - blend) * directions, dim=1)
