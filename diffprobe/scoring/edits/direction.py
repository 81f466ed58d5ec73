"""Add a vector to features."""

import hashlib
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffprobe.scoring.edits.base import check_width


@dataclass(frozen=True, eq=False)
class AddVector:
    """Add strength times a vector to every row.

    Attributes:
        vector: what strength 1 adds, in the unit of the features; a unit direction times the standard deviation of the
            data along it gives strengths in standard deviations.
    """

    vector: Float[Tensor, " d_in"]

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return len(self.vector)

    @property
    def identity(self) -> str:
        """Digest of the vector."""
        return hashlib.sha256(self.vector.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()

    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features; see `Edit`."""
        check_width(features, self.d_in, "the vector")
        step = strength * self.vector.double()
        return (features.double() + step.to(features.device)).float()
