"""Which words of the captions go with a component, and how much of it they explain together, within subjects.

A word that the subject decides, such as its name, cannot explain what varies within subjects: it is left out here, and
what it explains is the share of variance between subjects (`subjects.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from diffprobe.analysis.discovery.components import ordered_names
from diffprobe.analysis.phrase_ranking import PhraseBank
from diffprobe.analysis.statistics import Interval, SumStatistic, bootstrap_interval
from diffprobe.core.errors import EmptyClass

_FOLDS = 5
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the ridge regression, in samples: a penalty of 10 weighs as much as ten samples."""


@dataclass(frozen=True, kw_only=True)
class WordEffect:
    """How a component differs between samples with and without a phrase."""

    phrase: str
    """The phrase."""
    count: int
    """Samples whose caption has it."""
    effect: float
    """Difference with and without it within subjects, in standard deviations of the component."""
    p: float
    """Two-sided, against captions permuted within subjects, adjusted for the number of phrases by the largest one."""


@dataclass(frozen=True, kw_only=True)
class WordModel:
    """What the captions of the samples explain of one component."""

    effects: tuple[WordEffect, ...]
    """All phrases that are not decided by the subject, the largest effect first."""
    explained: Interval
    """Share of the variance within subjects that a regression on all these phrases predicts for other samples; 0 or
    less if it predicts no better than the mean."""

    @property
    def p(self) -> float:
        """The smallest p of its phrases, which is adjusted for their number."""
        return min(one.p for one in self.effects)


def varying_phrases(
    captions: Sequence[str], subjects: Int64[np.ndarray, " samples"], *, max_words: int = 2, min_count: int = 10
) -> PhraseBank | None:
    """Return the phrases that some captions of a subject have and others have not; None if there are none.

    Args:
        captions: caption of each sample, "" for none.
        subjects: number of each sample's subject.
        max_words: largest number of words of a phrase.
        min_count: least number of samples with a phrase, and without it.
    """
    try:
        bank = PhraseBank.of(
            captions, range(len(captions)), max_words=max_words, min_count=min_count, min_groups=min_count
        )
    except EmptyClass:
        return None
    varies = (_centred(bank.present.astype(np.float64), subjects) ** 2).sum(0) > 1e-9
    if not varies.any():
        return None
    kept = np.flatnonzero(varies)
    return PhraseBank(
        phrases=tuple(bank.phrases[i] for i in kept), same=tuple(bank.same[i] for i in kept),
        present=bank.present[:, kept], left_out=bank.left_out,
    )  # fmt: skip


def word_models(
    scores: Float64[np.ndarray, "samples components"],
    bank: PhraseBank,
    subjects: Int64[np.ndarray, " samples"],
    blocks: Sequence[str] | None,
    names: Sequence[str],
    *,
    n_permutations: int = 999,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[WordModel]:
    """Measure what the phrases explain of each component.

    Args:
        scores: components with standard deviation 1.
        bank: phrases that vary within subjects; see `varying_phrases`.
        subjects: number of each sample's subject.
        blocks: seed of each sample where subjects share their seeds: scores are permuted within subject and seed, and
            folds and resamples are of whole seeds; None for independent samples.
        names: name of each sample, by which folds are drawn, whatever the order.
        n_permutations, n_resamples, level, seed: of tests and intervals.
    """
    present, within = _centred(bank.present.astype(np.float64), subjects), _centred(scores, subjects)
    size = (present**2).sum(0)
    effects = (present.T @ within) / size[:, None]
    largest = _largest_by_chance(present / np.sqrt(size), within, _strata(subjects, blocks), n_permutations, seed)
    standard = np.abs(effects) * np.sqrt(size)[:, None]
    p = (1 + (largest[:, None, :] >= standard[None] - 1e-12).sum(0)) / (1 + n_permutations)
    predicted = _predict(present, within, _folds(blocks if blocks is not None else names))
    counts = bank.present.sum(0)
    clusters = list(blocks) if blocks is not None else list(names)
    models = []
    for column in range(scores.shape[1]):
        order = np.argsort(-standard[:, column], kind="stable")
        parts = np.stack([(within[:, column] - predicted[:, column]) ** 2, within[:, column] ** 2], axis=1)
        models.append(WordModel(
            effects=tuple(
                WordEffect(phrase=bank.phrases[i], count=int(counts[i]), effect=float(effects[i, column]),
                           p=float(p[i, column]))
                for i in order
            ),
            explained=bootstrap_interval(
                SumStatistic(parts=parts, value=_explained), clusters, n_resamples=n_resamples, level=level, seed=seed
            ),
        ))  # fmt: skip
    return models


def _largest_by_chance(
    present: np.ndarray, within: np.ndarray, strata: np.ndarray, n_permutations: int, seed: int
) -> Float64[np.ndarray, "permutations components"]:
    """Return the largest absolute effect of any phrase, in standard errors, for scores permuted within strata."""
    generator = np.random.default_rng(seed)
    inside = np.argsort(strata, kind="stable")
    found = np.empty((n_permutations, within.shape[1]))
    for row in range(n_permutations):
        shuffled = np.lexsort((generator.random(len(strata)), strata))
        permuted = np.empty_like(within)
        permuted[inside] = within[shuffled]
        found[row] = np.abs(present.T @ permuted).max(0)
    return found


def _predict(
    present: np.ndarray, within: np.ndarray, folds: Int64[np.ndarray, " samples"]
) -> Float64[np.ndarray, "samples components"]:
    """Return predictions of each sample by a ridge regression on the samples of the other folds."""
    from sklearn.linear_model import RidgeCV  # heavy

    predicted = np.zeros_like(within)
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        model = RidgeCV(alphas=_PENALTIES, alpha_per_target=True).fit(present[~held_out], within[~held_out])
        predicted[held_out] = model.predict(present[held_out]).reshape(int(held_out.sum()), -1)
    return predicted


def _folds(names: Sequence[str]) -> Int64[np.ndarray, " samples"]:
    """Return the fold of each sample, by the digest of its name; equal names are in one fold."""
    ordered = ordered_names(names)
    place = {name: i % min(_FOLDS, len(ordered)) for i, name in enumerate(ordered)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _strata(subjects: Int64[np.ndarray, " samples"], blocks: Sequence[str] | None) -> Int64[np.ndarray, " samples"]:
    if blocks is None:
        return subjects
    numbers = np.unique(np.array(blocks), return_inverse=True)[1]
    strata = subjects * (int(numbers.max()) + 1) + numbers
    return strata if len(np.unique(strata)) < len(strata) else subjects  # one prompt of each subject and seed


def _centred(values: Float64[np.ndarray, "samples k"], subjects: Int64[np.ndarray, " samples"]) -> np.ndarray:
    """Return values minus the mean of the sample's subject."""
    sums = np.zeros((int(subjects.max()) + 1, values.shape[1]))
    np.add.at(sums, subjects, values)
    means = sums / np.maximum(np.bincount(subjects), 1)[:, None]
    found: np.ndarray = values - means[subjects]
    return found


def _explained(sums: Float64[np.ndarray, "resamples 2"]) -> Float64[np.ndarray, " resamples"]:
    return 1 - np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
