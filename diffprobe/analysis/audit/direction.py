"""The direction of an axis: the mean paired difference of prompt latents over contexts, and how reliable it is."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffprobe.core.errors import EmptyClass

_HALVES = 50
"""Random splits of the templates whose agreement is averaged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisDirection:
    """A direction from the negative to the positive end of an axis."""

    unit: Float64[np.ndarray, " d"]
    """The direction, of length 1."""
    length: float
    """Length of the mean difference, in the unit of the latents."""
    agreement: float | None
    """Expected cosine with the direction of infinitely many templates, from random halves of them; None with fewer than
    4 templates."""


def direction_of(differences: Float64[np.ndarray, "templates seeds d"], *, seed: int = 0) -> AxisDirection:
    """Return the direction of an axis from its paired differences.

    The agreement is sqrt(2r / (1 + r)) with r the mean cosine of two halves (Spearman-Brown); 0 if r is not positive.
    It is of templates with these seeds, and says nothing about what the direction stands for.

    Raises: EmptyClass if the mean difference is 0: both ends give the same latents.
    """
    per_template = differences.mean(1)
    mean = per_template.mean(0)
    length = float(np.linalg.norm(mean))
    if not length > 0:
        raise EmptyClass("the latents of both ends of an axis are equal on average: there is no direction.",
                         "the words may be cut off or unknown to the tokenizer")  # fmt: skip
    return AxisDirection(unit=mean / length, length=length, agreement=_agreement(per_template, seed))


def left_out_directions(differences: Float64[np.ndarray, "templates seeds d"]) -> Float64[np.ndarray, "templates d"]:
    """Return for each template the direction of the other ones, of length 1: nothing is measured on its own direction.

    Raises: EmptyClass if the mean difference of the others is 0, or for a single template.

    >>> left_out_directions(np.array([[[1.0, 0.0]], [[0.0, 2.0]]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    per_template = differences.mean(1)
    others = per_template.sum(0) - per_template
    lengths = np.linalg.norm(others, axis=1, keepdims=True)
    if len(per_template) < 2 or not (lengths > 0).all():
        raise EmptyClass(f"directions of the other templates, of {len(per_template)}: at least 2 templates are needed, "
                         "and ends that differ on average.")  # fmt: skip
    return np.asarray(others / lengths)


def _agreement(per_template: Float64[np.ndarray, "templates d"], seed: int) -> float | None:
    n = len(per_template)
    if n < 4:
        return None
    generator, found = np.random.default_rng(seed), []
    for _ in range(_HALVES):
        order = generator.permutation(n)
        first, second = per_template[order[: n // 2]].mean(0), per_template[order[n // 2 :]].mean(0)
        scale = float(np.linalg.norm(first) * np.linalg.norm(second))
        found.append(float(first @ second) / scale if scale > 0 else 0.0)
    r = float(np.mean(found))
    return float(np.sqrt(2 * r / (1 + r))) if r > 0 else 0.0
