"""Score candidates in stages: all of them at a few timesteps, and only the best at more (Diffusion Classifier).

Nothing here knows which candidate is right, and no position is preferred: candidates that tie with the last one that is
kept are kept too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.backbones.base import Condition, take_rows
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.scoring.denoising_error import Score


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pruning: after `n_timesteps` timesteps in all, only the best `kept` candidates are scored further."""

    n_timesteps: int
    """Timesteps after which candidates are pruned, counted from the first one."""
    kept: int
    """Candidates that are kept, and those that tie with the last of them."""


def check_stages(stages: Sequence[Stage], n_timesteps: int) -> None:
    """Refuse stages that prune nothing or do not follow each other.

    Raises: ConfigError.
    """
    before = Stage(n_timesteps=0, kept=2**31)
    for stage in stages:
        if not before.n_timesteps < stage.n_timesteps < n_timesteps or not 1 <= stage.kept < before.kept:
            raise ConfigError(
                f"stages: keeping {stage.kept} after {stage.n_timesteps} of {n_timesteps} timesteps does not follow "
                + (f"{before.kept} after {before.n_timesteps}." if before.n_timesteps else "from the start."),
                "allowed: n_timesteps rising from 1 to less than all, kept falling to at least 1",
            )
        before = stage


def nested_timesteps(timesteps: Sequence[int]) -> list[int]:
    """Return timesteps in an order in which each beginning is spread over the whole range (van der Corput).

    >>> nested_timesteps([100, 200, 300, 400, 500, 600, 700, 800])
    [500, 300, 700, 200, 600, 400, 800, 100]
    """
    ordered, places, number = sorted(timesteps), dict[int, None](), 0
    while len(places) < len(ordered):
        number += 1
        binary = f"{number:b}"
        places[int(binary[::-1], 2) * len(ordered) >> len(binary)] = None  # digits of the number behind the point
    return [ordered[place] for place in places]


def staged_errors(
    score: Score,
    latents: Float[Tensor, "sample c h w"],
    keys: Sequence[str],
    conditions: Condition,
    candidates: Int[Tensor, "sample n"],
    offered: Bool[Tensor, "sample n"],
    timesteps: Sequence[int],
    weights: Float[Tensor, " timestep"],
    stages: Sequence[Stage] = (),
) -> Float[Tensor, "sample n timestep"]:
    """Return the errors of candidates, float64; NaN where a candidate was not scored: it is not offered, or was pruned.

    Source: Li et al., 2303.16203, section 3.3 and algorithm 2, with any number of stages.

    Args:
        score: returns errors; the noise of a sample and timestep is the same for all candidates.
        conditions: encoded conditions, of which `candidates` are rows.
        candidates: rows of the candidates of each sample, in any order; any row where not offered.
        offered: where `candidates` has one; samples may have different numbers of them.
        timesteps: in the order in which they are scored; the first ones decide about pruning.
        weights: of the timesteps, for pruning.
        stages: prunings, see `Stage`.
    Raises: NonFinite with the sample, candidate and timestep; ConfigError for stages that do not fit.
    """
    check_stages(stages, len(timesteps))
    found = torch.full((*candidates.shape, len(timesteps)), torch.nan, dtype=torch.float64)
    alive, start = offered.clone(), 0
    for stop, kept in [*((stage.n_timesteps, stage.kept) for stage in stages), (len(timesteps), None)]:
        asked = list(timesteps[start:stop])
        counts = alive.sum(1)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().flatten()
            if not count:
                continue
            places = alive[rows].nonzero()[:, 1].reshape(len(rows), count)
            names = [keys[row] for row in rows.tolist()]
            errors = score(latents[rows], names, take_rows(conditions, candidates[rows].gather(1, places)), asked)
            _require_finite(errors, names, candidates[rows].gather(1, places), asked)
            found[rows[:, None], places, start:stop] = errors.double()
        start = stop
        if kept is not None:
            totals = weighted_error(found[..., :stop], weights[:stop])
            last = totals.sort(1).values[:, min(kept, totals.shape[1]) - 1]
            alive &= totals <= last[:, None]
    return found


def weighted_error(
    errors: Float[Tensor, "sample n timestep"], weights: Float[Tensor, " timestep"]
) -> Float[Tensor, "sample n"]:
    """Return the weighted mean error of each candidate over all timesteps; infinite for one that was pruned."""
    total = weights.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return ((errors * weights).sum(2) / total).nan_to_num(nan=torch.inf)


def _require_finite(
    errors: Float[Tensor, "sample n timestep"],
    keys: Sequence[str],
    candidates: Int[Tensor, "sample n"],
    timesteps: Sequence[int],
) -> None:
    bad = (~errors.isfinite()).nonzero()
    if len(bad):
        sample, column, t = bad[0].tolist()
        raise NonFinite(
            f"the denoising error of sample '{keys[sample]}', candidate {int(candidates[sample, column])} at "
            f"t={timesteps[t]} is {float(errors[sample, column, t])}.",
            f"{len(bad)} of {errors.numel()} errors are not finite",
            fix="backbone.dtype=float32",
        )
