"""Edit features along a direction: add a vector, or remove what varies along it."""

import hashlib
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.base import check_width, digest_tensors


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


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """Move the coordinate of every row along a direction towards that of the data's mean; the rest of the row stays.

    Attributes:
        unit: the direction, of norm 1.
        mean: mean coordinate of the data: what strength 1 leaves.

    Raises: ConfigError for a vector that is not of norm 1.
    """

    unit: Float[Tensor, " d_in"]
    mean: float

    def __post_init__(self) -> None:
        if abs(float(self.unit.double().norm()) - 1) > 1e-3:
            raise ConfigError(
                f"the direction has norm {float(self.unit.double().norm()):.4g}; needed is a unit vector."
            )

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return len(self.unit)

    @property
    def identity(self) -> str:
        """Digest of the direction and the mean."""
        return digest_json(["ablate", digest_tensors({"unit": self.unit.double()}), self.mean])

    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features; see `Edit`. The strength is the share of the coordinate that is removed."""
        check_width(features, self.d_in, "the direction")
        if strength == 0:
            return features
        rows, unit = features.double(), self.unit.double().to(features.device)
        return (rows - strength * ((rows @ unit) - self.mean)[:, None] * unit).float()
