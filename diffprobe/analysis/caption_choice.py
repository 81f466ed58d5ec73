"""Which of n captions is this image's? The rule of Diffusion Classifier (Li et al., 2303.16203, eq. 5), chance 1/n.

Owns the candidates and the choice; errors come from `denoising_error.py`.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.analysis.denoising_error import DenoisingError
from diffprobe.core.errors import EmptyClass
from diffprobe.core.rng import derive_seed


def spread_timesteps(n: int, n_timesteps: int) -> list[int]:
    """Return `n` timesteps evenly spread over the grid, each in the middle of its part.

    >>> spread_timesteps(4, 1000)
    [125, 375, 625, 875]
    """
    return [int(n_timesteps * (2 * part + 1) / (2 * n)) for part in range(n)]


def candidates_of(
    keys: Sequence[str], groups: Sequence[str], captions: Sequence[str], *, n: int, seed: int
) -> Int[Tensor, "sample n"]:
    """Draw for each sample the rows of its candidate captions: its own first, then n - 1 of other groups.

    The others have distinct captions, and all samples are drawn alike. Which rows they are is fixed by (seed, key) and
    by the number of samples and their order, not by the batch or by what other samples drew.

    Args:
        groups: what two samples share when their captions are both right (for `emoji` the base).
    Raises: EmptyClass if fewer than n groups are there.
    """
    if len(set(groups)) < n:
        raise EmptyClass(f"{n} candidate captions need {n} different groups; there are {len(set(groups))}.")
    table = torch.empty(len(keys), n, dtype=torch.long)
    for row, (key, group) in enumerate(zip(keys, groups, strict=True)):
        generator = torch.Generator().manual_seed(derive_seed("candidates", seed, key))
        chosen, seen = [row], {captions[row]}
        for other in torch.randperm(len(keys), generator=generator).tolist():
            if len(chosen) == n:
                break
            if groups[other] != group and captions[other] not in seen:
                chosen.append(other)
                seen.add(captions[other])
        if len(chosen) < n:
            raise EmptyClass(f"sample '{key}' has only {len(chosen) - 1} other captions; {n - 1} are needed.")
        table[row] = torch.tensor(chosen)
    return table


def choose(
    score: DenoisingError,
    latents: Float[Tensor, "sample c h w"],
    keys: Sequence[str],
    text: Float[Tensor, "sample token width"],
    candidates: Int[Tensor, "sample n"],
    timesteps: Sequence[int],
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Bool[Tensor, " sample"]:
    """Tell for each sample whether its own caption has the least error, averaged over timesteps; a tie is wrong.

    Args:
        text: states of each sample's caption; `candidates` are rows of it, the right one in column 0.
        on_batch: called with the number of samples done, for progress.
    """
    found = []
    for rows in torch.arange(len(keys)).split(batch_size):
        errors = score(latents[rows], [keys[row] for row in rows.tolist()], text[candidates[rows]], timesteps).mean(-1)
        found.append((errors[:, :1] < errors[:, 1:]).all(1))
        on_batch(len(rows))
    return torch.cat(found)
