"""Choose the caption of an image among n: Diffusion Classifier (Li et al., 2303.16203, eq. 5), chance 1/n.

Holds the choice of candidates and the decision; errors come from `staged_errors`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.backbones.base import Condition
from diffprobe.core.errors import EmptyClass
from diffprobe.core.rng import derive_seed
from diffprobe.probes.score.candidate_ranks import is_chosen
from diffprobe.probes.score.staged_errors import Stage, staged_errors, weighted_error
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


@dataclass(frozen=True)
class Choice:
    """Whether each sample's own caption was chosen.

    Attributes:
        right: over all timesteps, among the candidates that were kept.
        right_at_screening: over the timesteps of the first stage alone, among all; the same as `right` without stages.
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
    stages: Sequence[Stage] = (),
    batch_size: int = 64,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Choice:
    """Return for each sample whether its own caption has the least error, averaged over timesteps; a tie is wrong.

    Errors are those of `staged_errors`, with all timesteps weighted alike.

    Args:
        conditions: encoded condition of each sample, one row each; `candidates` are rows of it, the right one in
            column 0 (its position has no effect).
        timesteps: in the order in which they are scored.
        stages: prunings; empty scores all candidates at all timesteps.
        on_batch: called with the number of samples done, for progress.
    Raises: ConfigError for stages that do not fit; NonFinite.
    """
    first = stages[0].n_timesteps if stages else len(timesteps)
    weights, parts = torch.ones(len(timesteps), dtype=torch.float64), []
    for rows in torch.arange(len(keys)).split(batch_size):
        names, asked = [keys[row] for row in rows.tolist()], candidates[rows]
        offered = torch.ones_like(asked, dtype=torch.bool)
        parts.append(staged_errors(score, latents[rows], names, conditions, asked, offered, timesteps, weights, stages))
        on_batch(len(rows))
    errors, own = torch.cat(parts), torch.zeros(len(keys), dtype=torch.long)
    return Choice(
        is_chosen(weighted_error(errors, weights), own),
        is_chosen(weighted_error(errors[..., :first], weights[:first]), own),
    )
