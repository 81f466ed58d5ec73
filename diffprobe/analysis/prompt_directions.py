"""Directions from prompts: the mean difference of prompt latents, paired by context and by seed.

For a context c (the same prompt otherwise) and a seed s, the paired difference is h(c with the positive value, s) minus
h(c with the negative value, s); the direction is its mean. What contexts and seeds add is the same on both sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.direction import cosine, split_half
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, unknown

Floats = NDArray[np.float64]
Values = Mapping[str, Sequence[str | None]]
"""Attribute -> its value for each prompt; None for none."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class PromptPairs:
    """Which prompts are compared: row i of `positive` and of `negative` have the context i.

    Attributes:
        contexts: their names, sorted.
        positive, negative: positions of the prompts.
        n_left_out: prompts with another value of the target, or without one.
    """

    contexts: tuple[str, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    n_left_out: int

    def differences(self, latents: NDArray[np.floating]) -> Floats:
        """Return the paired differences of latents (prompts, seeds, d), shape (contexts, seeds, d), float64.

        Raises: NonFinite for a number that is not finite; EmptyClass if no pair differs.
        """
        above, below = (latents[list(rows)].astype(np.float64) for rows in (self.positive, self.negative))
        if not (np.isfinite(above).all() and np.isfinite(below).all()):
            raise NonFinite("the prompt latents have a number that is not finite.")
        found: Floats = above - below
        if not found.any():
            raise EmptyClass(
                f"the latents of all {len(self.contexts)} pairs are equal: there is no direction.",
                fix="check that the prompts of both ends differ, and that the cell is read from their passes",
            )
        return found

    def midpoint(self, latents: NDArray[np.floating]) -> Floats:
        """Return the point half way between the means of both ends, shape (d,)."""
        above, below = (latents[list(rows)].astype(np.float64).mean((0, 1)) for rows in (self.positive, self.negative))
        middle: Floats = (above + below) / 2
        return middle


def pair_prompts(
    prompts: Sequence[str], attributes: Values, *, target: str, positive: str, negative: str, context: str
) -> PromptPairs:
    """Pair the prompts of both ends by their context.

    Args:
        prompts: texts of the prompts, for messages.
        attributes: of the prompts; `target` and `context` are two of them.
        target: attribute that differs within a pair.
        positive, negative: its values at both ends.
        context: attribute that is equal within a pair, and different between pairs.

    Raises: UnknownName for an attribute or value that no prompt has; ConfigError for equal ends, for a target that is
        its own context, for prompts of an end without a context, for two prompts of one context and value, for prompts
        without a partner, and for fewer than 2 contexts.
    """
    if target == context:
        raise ConfigError(
            f"target and context are both '{target}'.", "the context is what both prompts of a pair have in common"
        )
    for name in (target, context):
        if name not in attributes:
            raise unknown("attribute of the prompts", name, list(attributes))
    if positive == negative:
        raise ConfigError(f"both ends of '{target}' are '{positive}': they must differ.")
    values = attributes[target]
    known = sorted({value for value in values if value is not None})
    for end in (positive, negative):
        if end not in known:
            raise unknown(f"value of '{target}'", end, known)
    rows = [row for row, value in enumerate(values) if value in (positive, negative)]
    without = [row for row in rows if attributes[context][row] is None]
    if without:
        raise ConfigError(
            f"{len(without)} prompts with a value of '{target}' have no value of '{context}'.",
            *_named(prompts, without),
            fix=f"give both prompts of a pair the same value of '{context}'",
        )
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (str(attributes[context][row]), str(values[row]))
        if key in found:
            raise ConfigError(
                f"{context} '{key[0]}' has two prompts with {target} '{key[1]}'.",
                *_named(prompts, [found[key], row]),
                fix=f"another value of '{context}' for one of them",
            )
        found[key] = row
    contexts = sorted({name for name, _ in found})
    alone = [
        found[name, end]
        for name in contexts
        for end, other in ((positive, negative), (negative, positive))
        if (name, end) in found and (name, other) not in found
    ]
    if alone:
        raise ConfigError(
            f"{len(alone)} of {len(rows)} prompts have no partner with the other value of '{target}' and the same "
            f"'{context}'.",
            *_named(prompts, alone),
            fix="add the partners, or remove these prompts",
        )
    if len(contexts) < 2:
        raise ConfigError(
            f"{len(contexts)} context has both values of '{target}'; at least 2 are needed.",
            "one pair cannot separate the target from what else differs between its two prompts",
        )
    return PromptPairs(
        contexts=tuple(contexts),
        positive=tuple(found[name, positive] for name in contexts),
        negative=tuple(found[name, negative] for name in contexts),
        n_left_out=len(values) - len(rows),
    )


def held_out_pairs(changes: Floats) -> float:
    """Return the share of pairs that the direction of all other contexts puts in the right order, 0..1; chance is 0.5.

    It compares spaces of any width, since nothing but the sign of a coordinate counts. A tie counts by half.

    Args:
        changes: paired differences, shape (contexts, seeds, d), of at least 2 contexts.

    Raises: EmptyClass for one context.

    >>> held_out_pairs(np.array([[[1.0]], [[2.0]], [[-0.5]]]))
    0.666...
    """
    if len(changes) < 2:
        raise EmptyClass(f"{len(changes)} context: a direction of the other contexts needs at least 2.")
    of_context = changes.sum(1)
    side = np.einsum("csd,cd->cs", changes, of_context.sum(0) - of_context)
    return float(((side > 0) + 0.5 * (side == 0)).mean())


@dataclass(frozen=True, kw_only=True)
class HalvesCosine:
    """Cosine of the mean differences of two halves, over random divisions."""

    mean: float
    """Mean over the divisions."""
    low: float
    """Lower end of the range over the divisions."""
    high: float
    """Upper end."""
    n: int
    """Number of contexts, of seeds or of both that are divided."""


def halves_cosine(changes: Floats, *, n_halves: int, level: float, seed: int) -> HalvesCosine:
    """Return how far two halves of the changes, shape (n, d), have one direction.

    The range is over random divisions: it shows how much the division matters, and is not an interval of the mean.

    Raises: EmptyClass for fewer than 2 changes.
    """
    if len(changes) < 2:
        raise EmptyClass(f"{len(changes)} change cannot be divided into halves.")
    return _over_divisions(split_half(changes, n_halves=n_halves, seed=seed), level, len(changes))


def crossed_halves(changes: Floats, *, n_halves: int, level: float, seed: int) -> HalvesCosine:
    """Return how far the directions of disjoint halves of contexts and of seeds agree.

    In each random division one direction is of half of the contexts with half of the seeds, the other of the other
    contexts with the other seeds, so that neither a context nor the noise of a seed is in both.

    Args:
        changes: paired differences, shape (contexts, seeds, d).

    Raises: EmptyClass for fewer than 2 contexts or seeds.
    """
    n_contexts, n_seeds, _ = changes.shape
    if min(n_contexts, n_seeds) < 2:
        raise EmptyClass(f"{n_contexts} contexts x {n_seeds} seeds cannot both be divided into halves.")
    generator = np.random.default_rng(seed)
    found = np.empty(n_halves)
    for i in range(n_halves):
        contexts, seeds = generator.permutation(n_contexts), generator.permutation(n_seeds)
        halves = (
            (contexts[: n_contexts // 2], seeds[: n_seeds // 2]),
            (contexts[n_contexts // 2 :], seeds[n_seeds // 2 :]),
        )
        first, second = (changes[np.ix_(*half)].mean((0, 1)) for half in halves)
        found[i] = cosine(first, second)
    return _over_divisions(found, level, n_contexts * n_seeds)


def _over_divisions(cosines: Floats, level: float, n: int) -> HalvesCosine:
    low, high = (float(end) for end in np.quantile(cosines, [(1 - level) / 2, (1 + level) / 2]))
    return HalvesCosine(mean=float(cosines.mean()), low=low, high=high, n=n)


def _named(prompts: Sequence[str], rows: Sequence[int]) -> list[str]:
    shown = [f"'{prompts[row][:80]}'" for row in rows[:_SHOWN]]
    return [*shown, *([f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else [])]
