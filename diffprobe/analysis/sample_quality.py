"""Fidelity and diversity of generated samples in the features of an external reader: neighbourhoods and moments.

- Precision and recall (Kynkaanniemi et al., 1904.06991): the share of generated samples inside the neighbourhood of any
  real one, and the reverse. A neighbourhood is the ball to the k-th nearest sample of the same set.
- Density and coverage (Naeem et al., 2002.09797): in how many neighbourhoods of real samples a generated one lies, by
  k; and the share of real samples that have a generated one in their neighbourhood.
- Frechet distance of Gaussians fitted to both sets (Heusel et al., 1706.08500); biased upwards for few samples, so only
  sets of equal size compare.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError

RealFeatures = Float64[np.ndarray, "real _"]
GeneratedFeatures = Float64[np.ndarray, "generated _"]


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """The parts of precision, recall, density and coverage by sample; each measure is the mean of its array.

    Attributes:
        precision: 1 for a generated sample inside any real neighbourhood, else 0.
        density: number of real neighbourhoods around a generated sample, divided by k.
        recall: 1 for a real sample inside any generated neighbourhood, else 0.
        coverage: 1 for a real sample with a generated one in its neighbourhood, else 0.
    """

    precision: Float64[np.ndarray, " generated"]
    density: Float64[np.ndarray, " generated"]
    recall: Float64[np.ndarray, " real"]
    coverage: Float64[np.ndarray, " real"]


def neighbourhoods(real: RealFeatures, generated: GeneratedFeatures, *, k: int = 5) -> Neighbourhoods:
    """Return the four measures by sample.

    Raises: ConfigError if a set has at most k samples, or if the sets have other numbers of features.
    """
    if real.shape[1] != generated.shape[1]:
        raise ConfigError(f"real samples have {real.shape[1]} features, generated ones {generated.shape[1]}.")
    for name, values in (("real", real), ("generated", generated)):
        if len(values) <= k:
            raise ConfigError(f"k={k} nearest neighbours need more than {k} {name} samples; there are {len(values)}.")
    between = _distances(generated, real)
    of_real, of_generated = _radii(real, k), _radii(generated, k)
    inside = between <= of_real
    return Neighbourhoods(
        precision=np.asarray(inside.any(1), dtype=np.float64),
        density=inside.sum(1) / k,
        recall=np.asarray((between <= of_generated[:, None]).any(0), dtype=np.float64),
        coverage=np.asarray(inside.any(0), dtype=np.float64),
    )


def _distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    found: NDArray[np.float64] = cdist(first, second)
    return found


def _radii(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the distance of each sample to its k-th nearest other one."""
    found: NDArray[np.float64] = np.partition(_distances(values, values), k, axis=1)[:, k]
    return found


def frechet_distance(real: RealFeatures, generated: GeneratedFeatures) -> float:
    """Return |m_1 - m_2|^2 + trace(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of the means and covariances.

    Raises: ConfigError for fewer than two samples.

    >>> points = np.array([[0.0], [2.0]])
    >>> frechet_distance(points, points + 3)
    9.0
    """
    if min(len(real), len(generated)) < 2:
        raise ConfigError("a Frechet distance needs at least 2 samples of each set.")
    first, second = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (real, generated))
    shift = real.mean(0) - generated.mean(0)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # (S_1 S_2)^(1/2) has the trace of (S_1^(1/2) S_2 S_1^(1/2))^(1/2), which is symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross)
