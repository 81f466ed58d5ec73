"""Edit latents of a sparse autoencoder at a tap, with the reconstruction error kept.

With code z(x) and edited code z'(x), the features become x + decode(z') - decode(z): what the autoencoder does not
reconstruct stays. Pre-bias and the unchanged latents cancel, so that only the rows W_dec of the edited latents enter:
x + sum_j (z'_j - z_j) W_dec[j] / scale. Keeping the error follows Marks et al., "Sparse Feature Circuits" (2403.19647),
and the feature steering of Templeton et al., "Scaling Monosemanticity" (2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.scoring.edits.base import check_width, digest_tensors

LatentMode = Literal["add", "set", "ablate"]
"""What becomes of an activation z at strength s, with the latent's own mean activation m where it is active:
`add`: z + s m, at least 0; `set`: s m on every row; `ablate`: (1 - s) z, so that 1 removes the latent. At s = 0 each
leaves the row."""
_AT_ONCE = 8192
"""Rows that are encoded at once."""


class Dictionary(Protocol):
    """What an edit needs of an autoencoder; `diffprobe.probes.sae.KSAE` is one."""

    @property
    def d_in(self) -> int:
        """Width of the features."""

    @property
    def n_latents(self) -> int:
        """Number of latents."""

    @property
    def scale(self) -> Tensor:
        """What features are multiplied by before they are encoded, a scalar."""

    @property
    def W_dec(self) -> Tensor:
        """Decoder rows, in scaled units, (n_latents, d_in)."""

    def encode(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, "rows width"], Int[Tensor, "rows width"]]:
        """Return activations and the latents that they are of, given features in their own unit."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all weights by name."""


@torch.no_grad()
def activations(
    dictionary: Dictionary, features: Float[Tensor, "rows d_in"], latents: Sequence[int]
) -> Float64[Tensor, "rows latents"]:
    """Return the activations of some latents, on the device of the dictionary; 0 where a latent is not active.

    Raises: ConfigError for a latent that the dictionary lacks, or features of another width.
    """
    check_latents(dictionary, latents)
    check_width(features, dictionary.d_in, "the autoencoder")
    device, found = dictionary.W_dec.device, []
    for part in features.split(_AT_ONCE):
        values, indices = dictionary.encode(part.to(device).float())
        columns = [(values.double() * (indices == latent)).sum(1) for latent in latents]
        found.append(torch.stack(columns, 1))
    return torch.cat(found) if found else torch.zeros(0, len(latents), dtype=torch.float64, device=device)


def check_latents(dictionary: Dictionary, latents: Sequence[int]) -> None:
    """Refuse no latent, one that is given twice, and one that the dictionary lacks. Raises: ConfigError."""
    bad = [latent for latent in latents if not 0 <= latent < dictionary.n_latents]
    if bad:
        raise ConfigError(
            f"latent {', '.join(map(str, bad))} is out of range: 0 to {dictionary.n_latents - 1}, the latents of the "
            "autoencoder."
        )
    if not latents or len(set(latents)) < len(latents):
        raise ConfigError(f"latents {list(latents)}: at least one, each once.")


def mean_activations(
    dictionary: Dictionary, rows: Float[Tensor, "rows d_in"], latents: Sequence[int]
) -> tuple[float, ...]:
    """Return the mean activation of each latent over those rows on which it is active: the unit of its strength.

    Args:
        rows: features of training samples (or their places), in the unit of the tap.

    Raises: EmptyClass for a latent that is active on none of them; as `activations`.
    """
    found = activations(dictionary, rows, latents)
    active = found > 0
    silent = [latent for latent, n in zip(latents, active.sum(0).tolist(), strict=True) if n == 0]
    if silent:
        raise EmptyClass(
            f"latent {', '.join(map(str, silent))} is active on none of {len(rows)} rows, so its strength has no unit.",
            fix="another latent, or more samples",
        )
    return tuple(((found * active).sum(0) / active.sum(0)).tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class EditLatents:
    """Change the activations of some latents, and keep the reconstruction error.

    Attributes:
        dictionary: the autoencoder; features are encoded on its device.
        latents: which are changed, all at once.
        means: mean activation of each where it is active (`mean_activations`): strength 1.
        mode: what is done, a `LatentMode`.

    Raises: ConfigError for latents that the dictionary lacks, or means of another number or not above 0; UnknownName.
    """

    dictionary: Dictionary
    latents: tuple[int, ...]
    means: tuple[float, ...]
    mode: LatentMode = "add"

    def __post_init__(self) -> None:
        check_latents(self.dictionary, self.latents)
        if self.mode not in get_args(LatentMode):
            raise unknown("mode of an edit of latents", self.mode, get_args(LatentMode))
        if len(self.means) != len(self.latents) or not all(mean > 0 for mean in self.means):
            raise ConfigError(
                f"means={list(self.means)}: one above 0 is needed for each of {len(self.latents)} latents."
            )

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return self.dictionary.d_in

    @property
    def identity(self) -> str:
        """Digest of the weights, the latents, their unit and what is done."""
        weights = digest_tensors(self.dictionary.state_dict())
        return digest_json(["latents", weights, list(self.latents), list(self.means), self.mode])

    @torch.no_grad()
    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features; see `Edit`. The strength is in mean activations, for `ablate` the share removed."""
        before = activations(self.dictionary, features, self.latents)
        if strength == 0:
            return features
        change = self._after(before, strength) - before
        rows = self.dictionary.W_dec[list(self.latents)].double() / self.dictionary.scale.double()
        moved = (features.double() + (change @ rows).to(features.device)).float()
        return torch.where((change != 0).any(1, keepdim=True).to(features.device), moved, features)

    def _after(self, before: Float64[Tensor, "rows latents"], strength: float) -> Float64[Tensor, "rows latents"]:
        """Return the edited activations."""
        if self.mode == "ablate":
            return (1 - strength) * before
        wanted = strength * before.new_tensor(self.means)
        return (before + wanted if self.mode == "add" else wanted.expand_as(before)).clamp(min=0)
