"""How alike the decoder rows of a dictionary are: the largest and the mean |cosine| between two of them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import EmptyClass, NonFinite

CHUNK = 2048
"""Rows compared at once: at most CHUNK x CHUNK cosines are held."""


class Coherence(NamedTuple):
    """|cosine| over all pairs of different rows."""

    largest: float
    """1 for a pair of parallel rows; float64."""
    mean: float
    """Near sqrt(2 / (pi d_in)) for random directions."""
    pair: tuple[int, int]
    """The two most alike rows."""


@torch.no_grad()
def decoder_coherence(rows: Float[Tensor, "n_latents d_in"], *, chunk: int = CHUNK) -> Coherence:
    """Compare every row with every other one, in chunks.

    Cosines are products of unit rows in float32 (autocast off), summed in float64; the largest one is computed again
    in float64. So the mean is right to about 1e-7.

    Raises: EmptyClass for fewer than two rows; NonFinite for a row without direction (zero, NaN or infinity).

    >>> decoder_coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    Coherence(largest=1.0, mean=0.3333333333333333, pair=(0, 2))
    """
    n = len(rows)
    if n < 2:
        raise EmptyClass(f"coherence: a dictionary of {n} rows has no pair to compare.")
    norms = rows.detach().double().norm(dim=1)
    bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
    if bad:
        raise NonFinite(f"coherence: {len(bad)} of {n} decoder rows have no direction, row {bad[0]} is the first.")
    unit = (rows.detach().double() / norms[:, None]).float()
    largest, pair, total = -1.0, (0, 1), 0.0
    with torch.autocast(rows.device.type, enabled=False):
        for i in range(0, n, chunk):
            for j in range(i, n, chunk):  # the other half is its mirror image
                cosines = (unit[i : i + chunk] @ unit[j : j + chunk].T).abs()
                if i == j:
                    cosines = cosines.triu(1)  # a pair once, and no row with itself
                total += float(cosines.sum(dtype=torch.float64))
                if i == j:
                    cosines -= torch.ones_like(cosines).tril()  # below any pair, orthogonal ones too
                place = int(cosines.argmax())
                found, width = float(cosines.flatten()[place]), cosines.shape[1]
                if found > largest:
                    largest, pair = found, (i + place // width, j + place % width)
    a, b = (rows[row].detach().double() / norms[row] for row in pair)
    return Coherence(float((a @ b).abs()), total / (n * (n - 1) / 2), pair)
