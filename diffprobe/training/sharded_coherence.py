"""Decoder coherence of an autoencoder whose rows are on several processes: blocks of rows visit all of them.

Each pair of rows is compared once, by one of the two processes that have them, and about equally many by each process.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.metrics.decoder_coherence import CHUNK, Coherence, require_directions
from diffprobe.probes.sae.latent_shards import LatentShards

_SHOWN = 8
"""Numbers of bad rows that each process reports."""


@torch.no_grad()
def sharded_coherence(
    rows: Float[Tensor, "own d_in"], n_latents: int, shards: LatentShards, *, chunk: int = CHUNK
) -> Coherence:
    """Return the coherence of the whole decoder, as `decoder_coherence` does of a whole one; equal on all processes.

    Args:
        rows: this process's rows.
        n_latents: rows of all processes.
        shards: the processes.
        chunk: rows compared at once.

    Raises: EmptyClass for fewer than two rows; NonFinite for a row that is zero, NaN or infinite; on all processes.
    """
    first = shards.span(n_latents).start
    norms = rows.detach().double().norm(dim=1)
    bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten() + first
    shown = torch.full((_SHOWN,), -1, dtype=torch.int64, device=rows.device)
    shown[: len(bad[:_SHOWN])] = bad[:_SHOWN]
    reported = [row for row in shards.gather(shown).flatten().tolist() if row >= 0]
    require_directions(n_latents, reported)
    unit = (rows.detach().double() / norms[:, None]).float()
    best = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device=rows.device)  # |cosine|, its two rows
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for source in range(shards.size):
            span = shards.span(n_latents, source)
            for start in range(0, len(span), chunk):
                stop = min(start + chunk, len(span))
                own = unit[start:stop] if source == shards.rank else unit.new_empty(stop - start, unit.shape[1])
                visiting = shards.broadcast(own, source)
                if not _compares(shards.rank, source, shards.size):
                    continue
                for i in range(0, stop if source == shards.rank else len(unit), chunk):
                    cosines = (unit[i : i + chunk] @ visiting.T).abs()
                    if source == shards.rank:  # each pair once, no row with itself
                        earlier = torch.arange(i, i + len(cosines), device=rows.device)[:, None]
                        cosines = torch.where(earlier < torch.arange(start, stop, device=rows.device), cosines, -1.0)
                    total += cosines.clamp(min=0).sum(dtype=torch.float64)
                    place = int(cosines.argmax())
                    found, width = float(cosines.flatten()[place]), cosines.shape[1]
                    if found > float(best[0]):
                        pair = sorted((first + i + place // width, span.start + start + place % width))
                        best = best.new_tensor([found, *pair])
    largest, one, other = max(shards.gather(best).tolist(), key=lambda found: (found[0], -found[1], -found[2]))
    a, b = (_row(rows, int(number), n_latents, shards) for number in (one, other))
    mean = float(shards.total(total)) / (n_latents * (n_latents - 1) / 2)
    return Coherence(float((a @ b).abs()), mean, (int(one), int(other)))


def _compares(rank: int, source: int, size: int) -> bool:
    """Return whether a process compares its rows with those of another one; of two processes one does.

    >>> [[_compares(rank, source, 4) for source in range(4)] for rank in range(4)][0]
    [True, True, True, False]
    """
    ahead = (source - rank) % size
    return ahead < size / 2 or (2 * ahead == size and rank < source)


def _row(rows: Tensor, number: int, n_latents: int, shards: LatentShards) -> Tensor:
    source = next(rank for rank in range(shards.size) if number in shards.span(n_latents, rank))
    own = rows[number - shards.span(n_latents).start] if source == shards.rank else torch.empty_like(rows[0])
    row = shards.broadcast(own.detach(), source).double()
    return row / row.norm()
