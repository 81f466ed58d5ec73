"""Decoder coherence: the largest |cosine| between two decoder rows. The mean is in `mean_decoder_coherence.py`."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import EmptyClass, NonFinite

FOR = "sae_decoder"
NAME = "decoder_coherence"
HIGHER_IS_BETTER = False
HELP = "largest |cosine| of two decoder rows"
ORDER = 7

CHUNK = 2048
"""Rows compared at once: at most CHUNK x CHUNK cosines are held."""


class Coherence(NamedTuple):
    """|cosine| over all pairs of different decoder rows."""

    largest: float
    """Maximum, float64; 1 for a pair of parallel rows."""
    mean: float
    """Mean, float64; near sqrt(2 / (pi d_in)) for random directions."""
    pair: tuple[int, int]
    """Numbers of the two rows with the largest |cosine|."""


class WholeDecoder(NamedTuple):
    """A decoder that no process has whole."""

    coherence: Coherence
    """Its coherence."""
    shape: tuple[int, int]
    """Latents, d_in."""


@torch.no_grad()
def decoder_coherence(rows: Float[Tensor, "n_latents d_in"], *, chunk: int = CHUNK) -> Coherence:
    """Return the largest and the mean |cosine| over all pairs of rows, computed in chunks.

    Cosines are products of unit rows in float32 (autocast off), summed in float64; the largest one is computed again
    in float64. The mean is accurate to about 1e-7.

    Raises: EmptyClass for fewer than two rows; NonFinite for a row that is zero, NaN or infinite.

    >>> decoder_coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    Coherence(largest=1.0, mean=0.3333333333333333, pair=(0, 2))
    """
    n = len(rows)
    norms = rows.detach().double().norm(dim=1)
    require_directions(n, (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist())
    unit = (rows.detach().double() / norms[:, None]).float()
    largest, pair, total = -1.0, (0, 1), 0.0
    with torch.autocast(rows.device.type, enabled=False):
        for i in range(0, n, chunk):
            for j in range(i, n, chunk):  # cosines are symmetric: the upper half is enough
                cosines = (unit[i : i + chunk] @ unit[j : j + chunk].T).abs()
                if i == j:
                    cosines = cosines.triu(1)  # each pair once, no row with itself
                total += float(cosines.sum(dtype=torch.float64))
                if i == j:
                    cosines -= torch.ones_like(cosines).tril()  # below every pair, orthogonal ones too
                place = int(cosines.argmax())
                found, width = float(cosines.flatten()[place]), cosines.shape[1]
                if found > largest:
                    largest, pair = found, (i + place // width, j + place % width)
    a, b = (rows[row].detach().double() / norms[row] for row in pair)
    return Coherence(float((a @ b).abs()), total / (n * (n - 1) / 2), pair)


def require_directions(n: int, bad: list[int]) -> None:
    """Refuse a decoder without a pair of rows, or with rows that have no direction.

    Args:
        n: number of rows.
        bad: numbers of the rows that are zero or not finite, ascending.

    Raises: EmptyClass, NonFinite.
    """
    if n < 2:
        raise EmptyClass(f"decoder coherence: {n} decoder rows; at least 2 are needed.")
    if bad:
        raise NonFinite(
            f"decoder coherence: {len(bad)} of {n} decoder rows are zero or not finite, row {bad[0]} is the first."
        )


class DecoderCoherence(Metric):
    """Largest |cosine| of two decoder rows. Every process computes it from its own copy of the decoder."""

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    largest: Tensor
    mean: Tensor
    pair: Tensor
    shape: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        for name in ("largest", "mean"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)
        for name in ("pair", "shape"):
            self.add_state(name, torch.zeros(2, dtype=torch.int64), dist_reduce_fx=None)

    def update(self, decoder: Float[Tensor, "n_latents d_in"], whole: WholeDecoder | None = None) -> None:
        """Measure a decoder, one row per latent; it replaces an earlier one. Raises: EmptyClass, NonFinite.

        Args:
            whole: where `decoder` is a part, the coherence and shape of the whole one.
        """
        found, shape = (decoder_coherence(decoder), tuple(decoder.shape)) if whole is None else whole
        self.largest, self.mean = torch.full_like(self.largest, found.largest), torch.full_like(self.mean, found.mean)
        self.pair, self.shape = self.pair.new_tensor(found.pair), self.shape.new_tensor(shape)

    def compute(self) -> Tensor:
        """Return the largest |cosine|, a float64 scalar in 0..1."""
        return self.largest.clone()

    def detail(self) -> dict[str, Any]:
        """Return the two rows with the largest |cosine|."""
        return {"pair": self.pair.tolist()}


def make(d_in: int, n_latents: int) -> DecoderCoherence:
    """Make the metric."""
    return DecoderCoherence()
