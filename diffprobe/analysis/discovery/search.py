"""Open discovery from latents to findings, with two controls: normal random numbers, and permuted subjects."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diffprobe.analysis.discovery.components import (
    Components,
    Decomposition,
    find_components,
    halves,
    normal_surrogate,
)
from diffprobe.analysis.discovery.findings import Finding, Rules, classify, is_structured
from diffprobe.analysis.discovery.subjects import Design, SubjectDependence, subject_dependence
from diffprobe.analysis.discovery.two_groups import two_groups
from diffprobe.analysis.discovery.words import varying_phrases, word_models
from diffprobe.analysis.statistics import benjamini_hochberg
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

_PERMUTED = 20
"""Permutations of the subjects that are tested like the true ones, for the control."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How attributes are searched and tested."""

    decomposition: Decomposition = field(default_factory=Decomposition)
    """Number of components."""
    rules: Rules = field(default_factory=Rules)
    """Thresholds."""
    max_words: int = 2
    """Largest number of words of a phrase."""
    min_count: int = 10
    """Least number of samples with a phrase, and without it."""
    n_permutations: int = 999
    """Permutations of subjects, and of captions within subjects."""
    n_resamples: int = 1000
    """Resamples of seeds or samples."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""

    def __post_init__(self) -> None:
        at_least(2 * _PERMUTED - 1, n_permutations=self.n_permutations)
        at_least(1, n_resamples=self.n_resamples, max_words=self.max_words, min_count=self.min_count)
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level} is out of range: between 0 and 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Discovery:
    """What was found, and what is found by chance."""

    findings: tuple[Finding, ...]
    """All components, sorted."""
    components: Components
    """Their scores."""
    n_structured_by_chance: int
    """Components with structure in normal random numbers with the covariance of the latents."""
    associations_by_chance: float
    """Mean number of structured components that differ between permuted subjects at the same false discovery rate."""
    has_words: bool
    """Whether captions have words that vary within subjects."""

    @property
    def structured(self) -> tuple[Finding, ...]:
        """The findings without the unstructured components."""
        return tuple(one for one in self.findings if one.kind != "unstructured")


def discover_attributes(
    features: Float[np.ndarray, "samples d"],
    design: Design,
    names: Sequence[str],
    captions: Sequence[str],
    how: Search | None = None,
) -> Discovery:
    """Find which attributes vary in latents, which of them depend on subjects, and which words name them.

    Args:
        features: latents of the samples.
        design: subject of each sample, and blocks of samples that share their noise.
        names: name of each sample, unique; random choices depend on names, so the order of the samples does not matter.
        captions: caption of each sample, "" for none.
        how: settings.

    Raises: the errors of `find_components` and `subject_dependence`; ConfigError for other numbers of names or
        captions.
    """
    how = how or Search()
    if not len(features) == len(design.subjects) == len(names) == len(captions):
        raise ConfigError(
            f"{len(features)} latents for {len(design.subjects)} subjects of samples, {len(names)} names and "
            f"{len(captions)} captions: as many of each."
        )
    blocks = None if design.blocks is None else [str(one) for one in design.blocks]
    half = halves(blocks or names)
    components = find_components(features, half, how.decomposition, blocks=blocks)
    dependences = subject_dependence(components.scores, design, n_permutations=how.n_permutations, seed=how.seed)
    bank = varying_phrases(captions, design.subjects, max_words=how.max_words, min_count=how.min_count)
    words = None
    if bank is not None:
        words = word_models(
            components.scores, bank, design.subjects, blocks, names, n_permutations=how.n_permutations,
            n_resamples=how.n_resamples, level=how.level, seed=how.seed,
        )  # fmt: skip
    findings = classify(
        components, design, dependences, words, how.rules, n_resamples=how.n_resamples, level=how.level, seed=how.seed
    )
    by_chance = find_components(
        normal_surrogate(features, blocks=blocks, seed=how.seed), half, how.decomposition, blocks=blocks
    )
    kurtosis = (by_chance.scores**4).mean(0) - 3
    return Discovery(
        findings=tuple(findings), components=components, has_words=bank is not None,
        n_structured_by_chance=sum(
            is_structured(float(by_chance.stability[i]), one, float(kurtosis[i]), how.rules)
            for i, one in enumerate(two_groups(by_chance.scores))
        ),
        associations_by_chance=_associations_by_chance(
            [dependences[one.component] for one in findings if one.kind != "unstructured"], how.rules
        ),
    )  # fmt: skip


def _associations_by_chance(dependences: Sequence[SubjectDependence], rules: Rules) -> float:
    """Return how many components count as associated for permuted subjects, tested against the other permutations."""
    if not dependences:
        return 0.0
    found = []
    for number in range(_PERMUTED):
        p, beyond = [], []
        for one in dependences:
            values = one.null.values
            p.append((1 + int((values[_PERMUTED:] >= values[number]).sum())) / (1 + len(values) - _PERMUTED))
            beyond.append(values[number] - one.null.mean >= rules.least_share)
        adjusted = benjamini_hochberg(p).adjusted
        found.append(sum(q <= rules.fdr and large for q, large in zip(adjusted, beyond, strict=True)))
    return float(np.mean(found))
