"""Choose the caption of an image among n: Diffusion Classifier (Li et al., 2303.16203, eq. 5), chance 1/n.

Holds the choice of candidates and the decision; errors come from `scoring/denoising_error.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.backbones.base import Condition, take_rows
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.rng import derive_seed
from diffprobe.scoring.denoising_error import Score


def candidates_of(
    keys: Sequence[str], groups: Sequence[str], captions: Sequence[str], *, n: int, seed: int
) -> Int[Tensor, "sample n"]:
    """Draw for each sample the rows of its candidate captions: its own first, then n - 1 of other groups.

    The others have distinct captions, and all samples are drawn alike. The rows depend on (seed, key), the
    number of samples and their order, not on the batch or on the draws of other samples.

    Args:
        groups: group of each sample; two samples of one group have captions that are right for both (for `emoji` the
            base).
    Raises: EmptyClass with fewer than n groups.
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


@dataclass(frozen=True, kw_only=True)
class Screening:
    """A first stage at few timesteps, after which only the best candidates are scored at the others.

    The staged pruning of the paper's released code (there 50 samples for all classes, 500 for the best five).
    """

    timesteps: tuple[int, ...]
    """Timesteps at which all candidates are scored; a subset of all timesteps."""
    kept: int
    """Candidates that are scored at the other timesteps too."""


@dataclass(frozen=True)
class Choice:
    """Whether each sample's own caption was chosen.

    Attributes:
        right: over all timesteps, among the candidates that were kept.
        right_at_screening: over the timesteps of the screening alone, among all; the same as `right` without one.
    """

    right: Bool[Tensor, " sample"]
    right_at_screening: Bool[Tensor, " sample"]


def choose(
    score: Score,
    latents: Float[Tensor, "sample c h w"],
    keys: Sequence[str],
    conditions: Condition,
    candidates: Int[Tensor, "sample n"],
    timesteps: Sequence[int],
    *,
    screening: Screening | None = None,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Choice:
    """Return for each sample whether its own caption has the least error, averaged over timesteps; a tie is wrong.

    Args:
        conditions: encoded condition of each sample, one row each; `candidates` are rows of it, the right one in
            column 0.
        screening: None scores all candidates at all timesteps.
        on_batch: called with the number of samples done, for progress.
    Raises: ConfigError for a screening at timesteps outside of `timesteps`, or one that keeps a single candidate.
    """
    first = list(timesteps) if screening is None else list(screening.timesteps)
    others = sorted(set(timesteps) - set(first))
    kept = candidates.shape[1] if screening is None else min(screening.kept, candidates.shape[1])
    if kept < 2 or not set(first) <= set(timesteps):
        raise ConfigError(
            f"a screening at {first} that keeps {kept} candidates does not fit a choice at {list(timesteps)}.",
            fix="screen at some of the timesteps, and keep at least 2",
        )
    right, at_screening = [], []
    for rows in torch.arange(len(keys)).split(batch_size):
        names, asked = [keys[row] for row in rows.tolist()], candidates[rows]
        errors = score(latents[rows], names, take_rows(conditions, asked), first).double().sum(-1)
        at_screening.append(leads(errors))
        if others:
            places = _likeliest(errors, kept)
            more = score(latents[rows], names, take_rows(conditions, asked.gather(1, places)), others).double().sum(-1)
            # The own caption is in column 0 of what is kept, or was worse than `kept` others and has lost.
            right.append(leads(errors.gather(1, places) + more) & (places[:, 0] == 0))
        on_batch(len(rows))
    found = torch.cat(at_screening)
    return Choice(torch.cat(right) if right else found, found)


def leads(errors: Float[Tensor, "sample n"]) -> Bool[Tensor, " sample"]:
    """Return for each sample whether column 0 has the least error; a tie is wrong."""
    return (errors[:, :1] < errors[:, 1:]).all(1)


def _likeliest(errors: Float[Tensor, "sample n"], kept: int) -> Int[Tensor, "sample kept"]:
    """Return the columns of the least errors, in the order of columns; in a tie the own caption loses."""
    rivals = errors.clone()
    rivals[:, 0] = rivals[:, 0].nextafter(torch.tensor(torch.inf, dtype=errors.dtype))
    return rivals.argsort(dim=1, stable=True)[:, :kept].sort(1).values
