"""Codes without a dictionary: neurons, principal components and random directions, as sparse as an autoencoder's.

Each is a matrix of directions in centred features, of which the k largest projections of a sample are kept if they are
positive. Their codes have the form of a sparse autoencoder's, so that the same numbers can be computed from them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

_SMALLEST = 1e-12
"""Variance, as a share of the largest, below which a neuron or component is constant."""


class LinearCodes:
    """The k largest positive projections of a sample on given directions.

    Args:
        directions: (directions, d).
        centre: subtracted from the features, (d,).
        k: largest number of active directions of a sample.

    Raises: ConfigError for a k outside 1..directions or another width; NonFinite.

    >>> codes = LinearCodes(torch.eye(2), torch.zeros(2), k=1)
    >>> [part.tolist() for part in codes.encode(torch.tensor([[1.0, 3.0]]))]
    [[[3.0]], [[1]]]
    """

    def __init__(self, directions: Float[Tensor, "m d"], centre: Float[Tensor, " d2"], k: int) -> None:
        if directions.shape[1:] != centre.shape:
            raise ConfigError(f"directions of width {directions.shape[1]} and a centre of width {len(centre)}.")
        if not 1 <= k <= len(directions):
            raise ConfigError(f"k={k} of {len(directions)} directions; allowed: 1..{len(directions)}.")
        if not (torch.isfinite(directions).all() and torch.isfinite(centre).all()):
            raise NonFinite("the directions or the centre of the features have a number that is not finite.")
        self.directions, self.centre, self.k = directions.double(), centre.double(), k

    @property
    def n_latents(self) -> int:
        """Number of directions."""
        return len(self.directions)

    def encode(self, x: Float[Tensor, "batch d"]) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """Return values, at least 0, and indices of the k largest projections, the largest first.

        Raises: ConfigError for features of another width.
        """
        if x.shape[1] != len(self.centre):
            raise ConfigError(f"features of width {x.shape[1]}; the directions have {len(self.centre)}.")
        centred = x.detach().to("cpu", torch.float64) - self.centre
        values, indices = (centred @ self.directions.T).relu().topk(self.k, dim=1)
        return values, indices

    @classmethod
    def neurons(cls, mean: Float[Tensor, " d"], variance: Float[Tensor, " d"], k: int) -> "LinearCodes":
        """Return the raw neurons in standard deviations, each with both signs: 2 d directions, first the positive ones.

        Args:
            mean, variance: of the training features; a constant neuron is never active.
            k: active neurons per sample, that of the dictionary.
        """
        scale = torch.where(variance > _SMALLEST * variance.max(), variance.double().clamp(min=1e-300).rsqrt(), 0.0)
        return cls(torch.cat([torch.diag(scale), -torch.diag(scale)]), mean, k)

    @classmethod
    def components(
        cls, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], k: int, *, n: int | None = None
    ) -> "LinearCodes":
        """Return the first n principal components in standard deviations, each with both signs, the largest first.

        Args:
            mean, covariance: of the training features; components without variance are left out.
            k: active directions per sample.
            n: number of components; None for all.
        """
        variance, vectors = torch.linalg.eigh(covariance.double())
        order = variance.argsort(descending=True)
        order = order[variance[order] > _SMALLEST * variance.max()][:n]
        scaled = vectors[:, order].T * variance[order].rsqrt()[:, None]
        if not len(scaled):
            raise ConfigError("the features have no variance, and so no principal components.")
        return cls(torch.cat([scaled, -scaled]), mean, min(k, 2 * len(scaled)))

    @classmethod
    def random(cls, mean: Float[Tensor, " d"], n_latents: int, k: int, *, seed: int = 0) -> "LinearCodes":
        """Return random directions of length 1: a dictionary of the same size and density that learned nothing.

        Args:
            mean: of the training features.
            n_latents: number of directions.
            k: active directions per sample.
            seed: seed of the directions.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n_latents, len(mean), generator=generator, dtype=torch.float64)
        return cls(rows / rows.norm(dim=1, keepdim=True), mean, k)
