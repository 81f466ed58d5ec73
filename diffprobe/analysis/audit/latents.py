"""Prompt latents of an audit as arrays: subjects, attribute contexts and descriptors, over templates and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64

from diffprobe.analysis.audit.prompts import (
    NEGATIVE,
    POSITIVE,
    context_subjects,
    descriptor_prompts,
    end_prompts,
    subject_prompts,
)
from diffprobe.analysis.audit.spec import AuditSpec, Axis, Subject
from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditLatents:
    """Latents of prompts: one vector per prompt and seed, all prompts with the same seeds.

    Raises: ConfigError for other shapes or a prompt that is given twice; NonFinite.
    """

    features: Float32[np.ndarray, "prompts seeds d"]
    """Activations; seed j of all prompts is the same noise."""
    prompts: tuple[str, ...]
    """The text of each prompt."""

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or len(self.features) != len(self.prompts) or not self.features.size:
            raise ConfigError(
                f"prompt latents of shape {self.features.shape} for {len(self.prompts)} prompts.",
                "needed: (prompts, seeds, d), at least 1 of each",
            )
        if len(self._places) < len(self.prompts):
            twice = next(text for row, text in enumerate(self.prompts) if self._places[text] != row)
            raise ConfigError(f"prompt latents have the prompt '{twice}' more than once.")
        if not np.isfinite(self.features).all():
            row = int(np.flatnonzero(~np.isfinite(self.features).all((1, 2)))[0])
            raise NonFinite(f"prompt latents: a number of the prompt '{self.prompts[row]}' is not finite.")

    @property
    def n_seeds(self) -> int:
        """Number of seeds."""
        return self.features.shape[1]

    def require(self, prompts: Sequence[str]) -> None:
        """Check that all prompts are there. Raises: ConfigError, with the first ones that are missing."""
        if missing := [text for text in prompts if text not in self._places]:
            raise ConfigError(
                f"{len(missing)} of {len(prompts)} prompts have no latents.",
                *(f"missing: '{text}'" for text in missing[:3]),
                fix="extract the latents of the prompts that `diffprobe audit EXPERIMENT --prompts FILE` writes",
            )

    def rows(self, prompts: Sequence[str]) -> Float32[np.ndarray, "prompts seeds d"]:
        """Return the latents of some prompts, in their order. Raises: ConfigError for one that is missing."""
        self.require(prompts)
        return self.features[[self._places[text] for text in prompts]]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.prompts)}


def subject_latents(latents: AuditLatents, spec: AuditSpec) -> Float32[np.ndarray, "subjects templates seeds d"]:
    """Return the latents of the subjects without an attribute. Raises: ConfigError for a prompt that is missing."""
    return _grid(latents, subject_prompts(spec))


def descriptor_latents(latents: AuditLatents, spec: AuditSpec) -> Float32[np.ndarray, "words templates seeds d"]:
    """Return the latents of the descriptors. Raises: ConfigError for a prompt that is missing."""
    return _grid(latents, descriptor_prompts(spec))


def end_latents(
    latents: AuditLatents, spec: AuditSpec, axis: Axis, subjects: Sequence[Subject]
) -> tuple[
    Float32[np.ndarray, "subjects templates words seeds d"], Float32[np.ndarray, "subjects templates words seeds d"]
]:
    """Return the latents of subjects with the words of the positive and of the negative end of an axis.

    Raises: ConfigError for a prompt that is missing.
    """
    found = []
    for end in (POSITIVE, NEGATIVE):
        prompts = end_prompts(spec, axis, subjects, end)
        flat = [[word for words in rows for word in words] for rows in prompts]
        one = _grid(latents, flat)
        found.append(one.reshape(len(prompts), len(spec.templates), -1, *one.shape[2:]))
    return found[0], found[1]


def context_differences(latents: AuditLatents, spec: AuditSpec, axis: Axis) -> Float64[np.ndarray, "templates seeds d"]:
    """Return the paired difference of both ends in each template and seed, averaged over context subjects and words.

    Raises: ConfigError for a prompt that is missing.
    """
    subjects = context_subjects(spec)
    total: Float64[np.ndarray, "templates seeds d"] | None = None
    for one in subjects:  # one at a time: the latents of all of them with all words may not fit into memory
        positive, negative = end_latents(latents, spec, axis, [one])
        change = (positive.astype(np.float64) - negative).mean((0, 2))
        total = change if total is None else total + change
    assert total is not None
    return total / len(subjects)


def _grid(latents: AuditLatents, prompts: list[list[str]]) -> Float32[np.ndarray, "rows columns seeds d"]:
    found = latents.rows([text for row in prompts for text in row])
    return found.reshape(len(prompts), -1, *found.shape[1:])
