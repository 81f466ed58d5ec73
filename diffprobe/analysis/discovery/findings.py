"""What was found: components with structure, sorted into identities, associations, hidden ones, and free attributes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffprobe.analysis.discovery.components import Components
from diffprobe.analysis.discovery.subjects import Design, SubjectDependence, subject_intervals
from diffprobe.analysis.discovery.two_groups import TwoGroups, two_groups
from diffprobe.analysis.discovery.words import WordEffect, WordModel
from diffprobe.analysis.statistics import Interval, benjamini_hochberg
from diffprobe.core.errors import ConfigError

Kind = Literal["identity", "association", "free", "unstructured"]
KINDS: tuple[Kind, ...] = ("association", "free", "identity", "unstructured")
"""association: varies within subjects, at rates or places that differ between them; free: varies alike in all subjects;
identity: differs more between subjects than within, such as what the subject's name means; unstructured: not
distinguishable from noise along this component, or not found again in halves of the data."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a component counts as a finding, and as what."""

    least_stability: float = 0.8
    """Correlation with the nearest component of either half of the data."""
    least_evidence: float = 10.0
    """Of two groups: difference of the Bayesian information criterion."""
    least_separation: float = 2.0
    """Of two groups: Ashman's D."""
    least_kurtosis: float = 3.0
    """Excess kurtosis from which a component without two groups counts as heavy-tailed."""
    identity_share: float = 0.5
    """Share of variance between subjects from which a component is an identity."""
    least_share: float = 0.02
    """Share of variance between subjects, beyond that of permuted ones, from which a component is an association."""
    least_effect: float = 0.5
    """Effect of a phrase, in standard deviations, from which it names a component."""
    fdr: float = 0.05
    """False discovery rate over components; and the largest adjusted p of subjects and phrases."""

    def __post_init__(self) -> None:
        for name in ("least_stability", "identity_share", "least_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: 0 to 1.")
        if not 0 < self.fdr < 1 or min(self.least_separation, self.least_effect, self.least_kurtosis) < 0:
            raise ConfigError(
                f"fdr={self.fdr}, least_separation={self.least_separation}, least_effect={self.least_effect}, "
                f"least_kurtosis={self.least_kurtosis} is out of range.",
                "allowed: fdr between 0 and 1, the others from 0",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One component with all that was measured of it."""

    component: int
    """Its number, from 0."""
    kind: Kind
    """What it counts as; see `KINDS`."""
    stability: float
    """Correlation with the nearest component of either half of the data, 0..1."""
    kurtosis: float
    """Excess kurtosis; 0 for a normal distribution, -2 for two groups of equal size far apart."""
    groups: TwoGroups
    """Its two groups."""
    has_groups: bool
    """Whether they are apart."""
    dependence: SubjectDependence
    """How it depends on subjects."""
    q: float
    """The p of that, adjusted for the number of components."""
    rates: tuple[Interval, ...]
    """Per subject: share of samples in the smaller group; the mean score where there are no groups."""
    high: tuple[int, ...]
    """Subjects above the mean, the highest first."""
    low: tuple[int, ...]
    """Subjects below the mean, the lowest first."""
    words: WordModel | None
    """What captions explain; None where no word varies within subjects."""
    words_q: float | None
    """The p of the words, adjusted for the number of components."""
    named_by: tuple[WordEffect, ...]
    """Phrases that name it, the largest effect first; empty if none does."""

    @property
    def is_hidden(self) -> bool:
        """Whether it is an association that no word but the subject explains."""
        return self.kind == "association" and not self.named_by


def classify(
    components: Components, design: Design, dependences: Sequence[SubjectDependence], words: Sequence[WordModel] | None,
    rules: Rules, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0,
) -> list[Finding]:  # fmt: skip
    """Sort the components: associations first, the strongest first, then free ones by rarity, then identities.

    Args:
        components: of `find_components`.
        design: subjects and blocks.
        dependences: of `subject_dependence`, one per component.
        words: of `word_models`, one per component; None where no word varies within subjects.
        rules: thresholds.
        n_resamples, level, seed: of the intervals of subjects.
    """
    groups = two_groups(components.scores)
    q = benjamini_hochberg([one.null.p for one in dependences]).adjusted
    words_q = None if words is None else benjamini_hochberg([one.p for one in words]).adjusted
    kurtosis = (components.scores**4).mean(0) - 3
    found = []
    for i, dependence in enumerate(dependences):
        has_groups = has_two_groups(groups[i], rules)
        values = groups[i].smaller.astype(np.float64) if has_groups else components.scores[:, i]
        structured = is_structured(float(components.stability[i]), groups[i], float(kurtosis[i]), rules)
        kind = _kind(dependence, q[i], rules) if structured else "unstructured"
        high, low = _extreme_subjects(dependence, rules.fdr, groups[i].is_positive or not has_groups)
        found.append(Finding(
            component=i, kind=kind, stability=float(components.stability[i]), kurtosis=float(kurtosis[i]),
            groups=groups[i], has_groups=has_groups, dependence=dependence, q=q[i],
            rates=tuple(subject_intervals(values, design, n_resamples=n_resamples, level=level, seed=seed))
            if kind != "unstructured" else (),
            high=high, low=low, words=None if words is None else words[i],
            words_q=None if words_q is None else words_q[i],
            named_by=() if words is None or words_q is None else _names(words[i], words_q[i], rules),
        ))  # fmt: skip
    return sorted(found, key=_rank)


def has_two_groups(groups: TwoGroups, rules: Rules) -> bool:
    """Return whether the two groups of a component are apart."""
    return groups.are_apart(least_evidence=rules.least_evidence, least_separation=rules.least_separation)


def is_structured(stability: float, groups: TwoGroups, kurtosis: float, rules: Rules) -> bool:
    """Return whether a component is found again in both halves, and has two groups or a heavy tail."""
    return stability >= rules.least_stability and (has_two_groups(groups, rules) or kurtosis >= rules.least_kurtosis)


def _kind(dependence: SubjectDependence, q: float, rules: Rules) -> Kind:
    if dependence.share >= rules.identity_share:
        return "identity"
    beyond = dependence.share - dependence.null.mean
    return "association" if q <= rules.fdr and beyond >= rules.least_share else "free"


def _extreme_subjects(
    dependence: SubjectDependence, largest_p: float, is_positive: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the subjects at the end of the smaller group, and those at the other end."""
    towards = dependence.means if is_positive else -dependence.means
    order = [int(i) for i in np.argsort(-towards, kind="stable") if dependence.p[i] <= largest_p]
    return tuple(i for i in order if towards[i] > 0), tuple(i for i in reversed(order) if towards[i] < 0)


def _names(model: WordModel, q: float, rules: Rules) -> tuple[WordEffect, ...]:
    if q > rules.fdr:
        return ()
    named = [one for one in model.effects if one.p <= rules.fdr and abs(one.effect) >= rules.least_effect]
    return tuple(sorted(named, key=lambda one: (-abs(one.effect), one.phrase)))


def _rank(one: Finding) -> tuple[int, float, int]:
    strength = {"association": one.dependence.share, "free": one.groups.rarity if one.has_groups else 0.0}
    return KINDS.index(one.kind), -strength.get(one.kind, one.dependence.share), one.component
