"""Scores of features without labels, by which a cell can be chosen.

RankMe, CKNNA against another encoder, and the share of high spatial frequencies.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

EPSILON = 1e-7
"""Added to each share of RankMe, as in its paper."""


def rank_me(x: Float[Tensor, "samples d_in"]) -> float:
    """Return the effective rank of features: exp of the entropy of their singular values, 1 to min(samples, d_in).

    The singular values of the features, not centred, are divided by their sum. Source: Garrido et al. 2023, "RankMe:
    Assessing the downstream performance of pretrained self-supervised representations by their rank", equation 1.

    Raises: ConfigError without samples, NonFinite for features with NaN or infinity.

    >>> round(rank_me(torch.eye(4)), 3)
    4.0
    """
    _require(x, 1)
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny) + EPSILON
    return float((-(share * share.log()).sum()).exp())


def cknna(x: Float[Tensor, "samples d_x"], y: Float[Tensor, "same d_y"], *, k: int = 10) -> float:
    """Return the alignment of the k nearest neighbours in two spaces of features of the same samples, 1 for one space.

    Rows are brought to unit length. Of the inner products in each space, only those are kept where one sample is among
    the k most similar of the other in both spaces; the unbiased HSIC of what is left is divided by the root of the
    product of the same of each space with itself. Source: CKNNA of Huh et al. 2024, "The Platonic Representation
    Hypothesis", appendix A, in the unbiased form of their released code, which REPA (Yu et al. 2025) reports at k = 10.
    Neighbourhood is not symmetric, so exchanging the two spaces changes the value a little. It is 0 where the HSIC of a
    space with itself is 0.

    Raises: ConfigError for k below 2, k or fewer samples, fewer than 4, or different numbers of them; NonFinite.
    """
    if k < 2:
        raise ConfigError(f"k={k} is out of range: at least 2.")
    if len(x) != len(y):
        raise ConfigError(f"the two spaces have {len(x)} and {len(y)} samples.")
    for part in (x, y):
        _require(part, max(k + 1, 4))
    kernels = [_kernel(part) for part in (x, y)]
    masks = [_nearest(kernel, k) for kernel in kernels]
    both = _hsic(kernels[0] * (masks[0] & masks[1]), kernels[1] * (masks[0] & masks[1]))
    own = [_hsic(kernel * mask, kernel * mask) for kernel, mask in zip(kernels, masks, strict=True)]
    scale = (own[0] * own[1]).clamp(min=0).sqrt()
    return float(both / scale) if scale > 1e-12 else 0.0


def high_frequency_share(x: Float[Tensor, "samples channels height width"], *, cutoff: float = 0.5) -> float:
    """Return the share of the energy of feature maps at high spatial frequencies, 0 to 1, the mean over samples.

    A frequency is high if its largest component is above `cutoff` of the Nyquist frequency; the mean of a channel has
    no share. In the spirit of A-SelecT (Liu et al. 2026, arXiv 2603.25758), which selects the timestep of a transformer
    by a ratio of high frequencies in one of its features. Its formula and its cutoff were not read: this one is ours.

    Raises: ConfigError for maps below 2 x 2, constant maps or a cutoff outside of (0, 1); NonFinite.
    """
    if not 0 < cutoff < 1:
        raise ConfigError(f"cutoff={cutoff:g} is out of range: above 0 and below 1.")
    if min(x.shape[2:]) < 2 or not len(x):
        raise ConfigError(f"features have shape {tuple(x.shape)}; expected (samples, channels, height, width).")
    _require(x.flatten(1), 1)
    x = x.double() - x.double().mean((2, 3), keepdim=True)
    energy = torch.fft.fft2(x).abs().square().sum(1)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64).abs() * 2 for side in x.shape[2:])
    is_high = torch.maximum(rows[:, None], columns[None]) > cutoff
    total = energy.sum((1, 2))
    if not (total > 0).all():
        raise ConfigError(f"the maps of {int((total <= 0).sum())} of {len(x)} samples are constant.")
    return float(((energy * is_high).sum((1, 2)) / total).mean())


def _require(x: Tensor, n: int) -> None:
    if x.ndim != 2 or len(x) < n:
        raise ConfigError(f"features have shape {tuple(x.shape)}; expected (samples, d_in) with at least {n} samples.")
    if not torch.isfinite(x).all():
        raise NonFinite(f"{int((~torch.isfinite(x)).any(1).sum())} of {len(x)} samples have NaN or infinity.")


def _kernel(x: Tensor) -> Float[Tensor, "samples samples"]:
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    return unit @ unit.T


def _nearest(kernel: Float[Tensor, "samples samples"], k: int) -> Bool[Tensor, "samples samples"]:
    others = kernel.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, others.topk(k, dim=1).indices, True)


def _hsic(one: Float[Tensor, "samples samples"], two: Float[Tensor, "samples samples"]) -> Float[Tensor, ""]:
    """Return the unbiased estimate of HSIC from two kernels (Song et al. 2012, equation 5)."""
    m = len(one)
    one, two = one.clone().fill_diagonal_(0), two.clone().fill_diagonal_(0)
    trace = (one * two.T).sum()
    product = one.sum() * two.sum() / ((m - 1) * (m - 2))
    chain = one.sum(0) @ two.sum(1)
    return (trace + product - 2 * chain / (m - 2)) / (m * (m - 3))
