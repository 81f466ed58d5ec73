"""Detect and replace: where a detector finds the wrong state of a concept, the feature of a real sample is put in.

A control for edits that move features off the data. It is in the spirit of detect-then-replace in "Look But Don't
Touch" (2606.31699), of which only the abstract and notes of others could be read; what is replaced by what is defined
here and may differ. With a detector D and training rows B, a positive strength s inserts the concept: a row x with D(x)
false becomes x + s (b - x), where b is the nearest row of B with D(b) true, or the mean of those. A negative strength
removes it: a row with D(x) true becomes x + |s| (b - x), with b of those with D(b) false. Rows that are in the wanted
state already stay as they are. With `nearest` and |s| = 1 every edited row is one that the model itself produced.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.scoring.edits.base import check_width, digest_tensors
from diffprobe.scoring.edits.latent import Dictionary, activations, check_latents

Source = Literal["nearest", "mean"]
"""What is put in: of the rows in the wanted state, the nearest one (Euclidean, each number divided by its standard
deviation over all rows), or the mean."""
_AT_ONCE = 1024
"""Rows whose nearest row is sought at once."""


class Detector(Protocol):
    """Says which rows show a concept."""

    @property
    def d_in(self) -> int:
        """Width of the features."""

    @property
    def identity(self) -> str:
        """Digest of all that fixes the detector."""

    def __call__(self, features: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Return whether each row shows the concept, on the device of the features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentActive:
    """A row shows the concept if one latent of an autoencoder is above a threshold there.

    Raises: ConfigError for a latent that the dictionary lacks, or a threshold below 0.
    """

    dictionary: Dictionary
    latent: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_latents(self.dictionary, [self.latent])
        if self.threshold < 0:
            raise ConfigError(f"threshold={self.threshold:g} of an activation must be at least 0.")

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return self.dictionary.d_in

    @property
    def identity(self) -> str:
        """Digest of the weights, the latent and the threshold."""
        return digest_json(["active", digest_tensors(self.dictionary.state_dict()), self.latent, self.threshold])

    def __call__(self, features: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Return whether each row shows the concept."""
        return (activations(self.dictionary, features, [self.latent])[:, 0] > self.threshold).to(features.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class AboveThreshold:
    """A row shows the concept if its coordinate along a vector is above a threshold; of one neuron, a unit vector."""

    vector: Float[Tensor, " d_in"]
    threshold: float

    @classmethod
    def at_quantile(
        cls, vector: Float[Tensor, " d_in"], rows: Float[Tensor, "rows d_in"], share: float
    ) -> "AboveThreshold":
        """Return the detector that finds the concept on a share of training rows: those furthest along the vector.

        At least one row is on each side.

        Raises: ConfigError for a share outside 0..1, its ends left out; EmptyClass for fewer than two rows.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share:g} of rows with the concept is out of range: between 0 and 1.")
        if len(rows) < 2:
            raise EmptyClass(f"a threshold needs at least two training rows; there are {len(rows)}.")
        along = rows.double() @ vector.double()
        above = min(max(1, round(share * len(rows))), len(rows) - 1)
        return cls(vector=vector, threshold=float(along.sort().values[len(rows) - above - 1]))

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return len(self.vector)

    @property
    def identity(self) -> str:
        """Digest of the vector and the threshold."""
        return digest_json(["above", digest_tensors({"vector": self.vector.double()}), self.threshold])

    def __call__(self, features: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Return whether each row shows the concept."""
        return features.double() @ self.vector.double().to(features.device) > self.threshold


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectAndReplace:
    """Replace the rows that are not in the wanted state of a concept: a positive strength wants it, a negative one not.

    Attributes:
        detector: finds the concept.
        bank: training rows, in the unit of the tap and of its cell.
        source: what is put in.

    Raises: ConfigError for a bank of another width; EmptyClass for a bank whose rows are all in one state; UnknownName.
    """

    detector: Detector
    bank: Float[Tensor, "rows d_in"]
    source: Source = "nearest"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise unknown("source of a replacement", self.source, get_args(Source))
        check_width(self.bank, self.detector.d_in, "the detector")
        n = int(self._shown.sum())
        if n in (0, len(self.bank)):
            raise EmptyClass(
                f"the detector finds the concept on {n} of {len(self.bank)} rows, so there is nothing to put in.",
                fix="more training rows, or another threshold",
            )

    @property
    def d_in(self) -> int:
        """Width of the features."""
        return self.detector.d_in

    @cached_property
    def identity(self) -> str:
        """Digest of the detector, the bank and what is done."""
        return digest_json(["replace", self.detector.identity, digest_tensors({"bank": self.bank}), self.source])

    def candidates(self, wanted: bool) -> Float[Tensor, "found d_in"]:
        """Return the rows of the bank that show the concept, or those that do not."""
        return self.bank[self._shown == wanted]

    def __call__(self, features: Float[Tensor, "rows d_in"], strength: float) -> Float[Tensor, "rows d_in"]:
        """Return edited features; see `Edit`. Strength 1 inserts the concept, -1 removes it."""
        check_width(features, self.d_in, "the detector")
        if strength == 0:
            return features
        wanted = strength > 0
        found, wrong = features.clone(), (self.detector(features) != wanted).nonzero().squeeze(1)
        rows, among = features[wrong].double(), self.candidates(wanted).double()
        put = among.mean(0) if self.source == "mean" else self._nearest(rows, among)
        found[wrong] = (rows + abs(strength) * (put.to(rows.device) - rows)).float()
        return found

    @cached_property
    def _shown(self) -> Bool[Tensor, " rows"]:
        return self.detector(self.bank)

    def _nearest(
        self, rows: Float[Tensor, "rows d_in"], among: Float[Tensor, "found d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        sd = self.bank.double().std(0, correction=0)
        kept = sd > 0
        scaled = (among[:, kept] / sd[kept]).to(rows.device)
        given = rows[:, kept.to(rows.device)] / sd[kept].to(rows.device)
        places = [torch.cdist(part, scaled).argmin(1) for part in given.split(_AT_ONCE)]
        chosen = torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)
        return among[chosen.to(among.device)]
