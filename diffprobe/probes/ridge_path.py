"""Ridge regression in closed form for a whole path of penalties, from one eigendecomposition. Pure torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite


def ridge_path(
    x: Float[Tensor, "samples d_in"],
    y: Float[Tensor, "samples n_outputs"],
    l2: Float[Tensor, " path"],
    *,
    weights: Float[Tensor, " samples"] | None = None,
) -> tuple[Float[Tensor, "path n_outputs d_in"], Float[Tensor, "path n_outputs"]]:
    """Minimise the weighted mean of (y - Wz - b)^2 / 2 plus l2 / 2 * |W|^2, for features z standardised by x.

    Mean and variance of z are those of the samples with a weight, not weighted; it is scikit-learn's Ridge with alpha =
    l2 * sum of weights on standardised features. The offset is not penalised.

    Args:
        x: features in any unit.
        y: targets.
        l2: penalties, each above 0, in any order.
        weights: weight of each sample; None for 1 each; 0 leaves a sample out.

    Returns: weights and offsets for features in their own unit, float64.
    Raises: ConfigError for a penalty at or below 0, shapes that do not fit, and no sample with a weight; NonFinite for
        features or targets with NaN or infinity.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or (weights is not None and len(weights) != len(x)):
        raise ConfigError(f"ridge: features {tuple(x.shape)}, targets {tuple(y.shape)} and weights do not fit.")
    if not (torch.isfinite(l2) & (l2 > 0)).all() or not len(l2):
        raise ConfigError(f"l2={l2.tolist()}: every penalty has to be above 0.")
    weight = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    used = weight > 0
    if not used.any():
        raise ConfigError("ridge: no sample has a weight.")
    z, target, weight = x[used].double(), y[used].double(), weight[used] / weight[used].sum()
    if not (torch.isfinite(z).all() and torch.isfinite(target).all()):
        raise NonFinite("ridge: features or targets have NaN or infinity.")
    mean, deviation = z.mean(0), z.std(0, unbiased=False)
    flat = deviation <= 1e-12 * z.abs().amax(0).clamp(min=1e-300)
    scale = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, deviation))
    z = (z - mean) * scale
    middle, target_mean = weight @ z, weight @ target
    root = weight.sqrt()[:, None]
    z, target = (z - middle) * root, (target - target_mean) * root
    if len(z) >= z.shape[1]:
        spectrum, basis = torch.linalg.eigh(z.T @ z)
        turned = basis.T @ (z.T @ target)
    else:  # fewer samples than dimensions: the smaller matrix has the same spectrum
        spectrum, left = torch.linalg.eigh(z @ z.T)
        basis, turned = z.T @ left, left.T @ target
    inverse = 1 / (spectrum.clamp(min=0) + l2.to(spectrum)[:, None])
    standard = (basis @ (inverse[..., None] * turned)).mT
    found = standard * scale
    return found, target_mean - found @ mean - standard @ middle


def one_hot_targets(labels: Int[Tensor, " samples"], n_classes: int) -> Float[Tensor, "samples n_classes"]:
    """Return 1 for the class of a sample and -1 for the others, as scikit-learn's RidgeClassifier; -1: all -1."""
    classes = torch.arange(n_classes, device=labels.device)
    return (labels[:, None] == classes).double() * 2 - 1
