"""The interface of edits: features and a strength go in, edited features come out."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError


class Edit(Protocol):
    """What is done to features, at any strength.

    Each row is edited by itself, so that the result does not depend on how many rows run together. At strength 0, and
    wherever the edit changes nothing, a row stays as it is, bit by bit.
    """

    @property
    def d_in(self) -> int:
        """Width of the features."""

    @property
    def identity(self) -> str:
        """Digest of all that fixes the edit, besides the strength."""

    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features, float32, on the device of the features.

        Args:
            features: float32, in the unit of the tap; one row per sample if pooled, else one per place.
            strength: 0 leaves all rows; its unit is that of the kind of edit.

        Raises: ConfigError for features of another width.
        """


def check_width(features: Tensor, d_in: int, what: str) -> None:
    """Refuse features of another width than an edit is for. Raises: ConfigError."""
    if features.ndim != 2 or features.shape[1] != d_in:
        raise ConfigError(
            f"features of shape {tuple(features.shape)} do not fit {what}, which is for {d_in} numbers per row.",
            fix="edit the cell (tap and pooling) that it was made for",
        )


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors by name: of their names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
