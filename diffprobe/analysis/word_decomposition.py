"""A direction as a sparse signed sum of the directions of words, with the number of words chosen on held-out samples.

The direction of a phrase is the mean of the features of the samples that have it minus that of all others. Orthogonal
matching pursuit (Mallat and Zhang, 1993; scikit-learn) writes a given direction as a sum of few of them, as Conceptor
(Chefer et al., arXiv 2306.00966) writes a concept as a sum of tokens. With enough phrases such a sum fits any
direction, by the noise of their means; so its factors are fitted on some groups of samples, and scored with the
directions that the same phrases have in other groups.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import NDArray

from diffprobe.analysis.phrase_ranking import PhraseBank
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.groups import Groups
from diffprobe.probes.caption.shuffled_captions import shuffle_captions
from diffprobe.probes.grouped_folds import unlabelled_folds
from diffprobe.probes.null_distribution import Null

MOST_PHRASES = 500
"""Most phrases that a sum is chosen from: the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A phrase of the sum."""

    phrase: str
    """The phrase."""
    opposite: tuple[str, ...]
    """Phrases of the samples that do not have it: the same direction, reversed."""
    coefficient: float
    """Factor of the unit direction of the phrase, in a sum that is to be the unit direction."""
    cosine: float
    """Cosine of the direction of the phrase alone with the direction."""
    n_folds: int
    """Fits without one of the folds that have the phrase with the same sign."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """A direction as a sum of directions of phrases."""

    terms: tuple[Term, ...]
    """The phrases of the fit to all samples, the most positive first; () if no number of them is better than none."""
    cosine: float
    """Cosine of the sum and the direction on samples that neither its factors nor their number were chosen on."""
    fitted_cosine: float
    """The same on the samples of the fit, which more phrases always improve."""
    path: tuple[float, ...]
    """Cosine on held-out samples for 1, 2, ... phrases. The number of terms is the least one that is not worse than the
    best by more than a standard error, as measured on these samples."""
    random: Null
    """`cosine` of random directions: how well the phrases describe any direction."""
    shuffled: Null
    """`cosine` of this direction with captions exchanged between groups."""
    n_phrases: int
    """Phrases that could be chosen: present and absent in every fold, and among the `MOST_PHRASES` most frequent."""
    n_left_out: int
    """Phrases of the bank that could not."""
    n_folds: int
    """Folds of whole groups."""


def decompose(
    bank: PhraseBank,
    features: Float[ndarray, "samples d"],
    direction: Float[ndarray, " d_direction"],
    random: Float[ndarray, "d_random draws"],
    groups: Sequence[str],
    *,
    max_terms: int = 12,
    n_folds: int = 4,
    n_permutations: int = 1000,
    seed: int = 0,
) -> Decomposition:
    """Write a direction as a sum of directions of phrases.

    Args:
        bank: the phrases of the samples; their order has no effect.
        features: features of each sample, in the space of the direction. Use samples on which it was not fitted.
        direction: d numbers, of any length above 0.
        random: random directions of d numbers, in columns.
        groups: name of the group of each sample.
        max_terms: largest number of phrases of the sum.
        n_folds: folds of whole groups, at least 3: one is scored, one chooses the number of phrases.
        n_permutations: draws of shuffled captions.
        seed: of folds and shuffles.

    Raises: ConfigError for inputs of different shapes or a number out of range; NonFinite for NaN or infinity;
        EmptyClass for a direction of length 0, or if no phrase is present and absent in every fold; TooFewGroups for
        fewer groups than folds.
    """
    x, target = _checked(bank, features, direction, random, groups, max_terms, n_folds, n_permutations)
    numbers = Groups.of(groups, what="decomposition", at_least=n_folds).ids
    folds = unlabelled_folds(groups, n_folds=n_folds, seed=seed)
    names, opposites, present = _distinct(bank)
    usable = _usable(present, folds, n_folds)
    if not usable.any():
        raise EmptyClass(
            f"no phrase is present, and absent, in each of {n_folds} folds of the groups.",
            f"phrases: {len(names)}, groups: {len(np.unique(numbers))}",
            fix="fewer folds, a larger min_groups, or more samples",
        )
    kept = np.flatnonzero(usable)
    kept = np.sort(kept[np.argsort(-present[:, kept].sum(0), kind="stable")][:MOST_PHRASES])
    present = present[:, kept]
    sums = _FoldSums(x, present, folds, n_folds)
    fit = _Fit(sums, max_terms)
    crossed, held_out = fit.cross_fitted(target)
    n_terms, path = _chosen_number(held_out, target), _cosines(held_out.mean(0), target)
    others = [fit.cross_fitted(column)[0] for column in _unit(random.astype(np.float64).T)]
    draws = np.random.default_rng(seed).integers(2**31, size=n_permutations)
    chance = [_shuffled_cosine(x, present, folds, n_folds, numbers, target, max_terms, int(draw)) for draw in draws]
    terms, fitted = _terms(fit, target, n_terms, [names[i] for i in kept], [opposites[i] for i in kept])
    return Decomposition(
        terms=terms, cosine=crossed, fitted_cosine=fitted, path=tuple(path.tolist()),
        random=Null(observed=crossed, values=np.array(others), n_permutations=len(others)),
        shuffled=Null(observed=crossed, values=np.array(chance), n_permutations=n_permutations),
        n_phrases=len(kept), n_left_out=len(names) - len(kept), n_folds=n_folds,
    )  # fmt: skip


class _FoldSums:
    """Sums over the samples of each fold, from which the directions of the phrases in any folds follow."""

    def __init__(
        self,
        x: Float[ndarray, "samples d"],
        present: Bool[ndarray, "samples phrases"],
        folds: Int[ndarray, " samples"],
        n_folds: int,
    ) -> None:
        parts = [folds == k for k in range(n_folds)]
        self.n_folds = n_folds
        self._with = np.stack([present[part].astype(np.float64).T @ x[part] for part in parts])
        self._all = np.stack([x[part].sum(0) for part in parts])
        self._count = np.stack([present[part].sum(0) for part in parts])[..., None]
        self._size = np.array([part.sum() for part in parts])

    def directions(self, folds: Sequence[int]) -> Float[ndarray, "phrases d"]:
        """Return the direction of each phrase in the samples of some folds."""
        chosen = list(folds)
        inside, count = self._with[chosen].sum(0), self._count[chosen].sum(0)
        found: NDArray[np.float64] = inside / count
        found -= (self._all[chosen].sum(0) - inside) / (self._size[chosen].sum() - count)
        return found


class _Fit:
    """Matching pursuit on the samples of some folds; what does not depend on the direction is computed once."""

    def __init__(self, sums: _FoldSums, max_terms: int) -> None:
        self.n_folds, every = sums.n_folds, range(sums.n_folds)
        self.held_out = [sums.directions([fold]) for fold in every]
        left_out = [*combinations(every, 2), *((fold,) for fold in every), ()]
        self._learned = {left: _Dictionary(sums, [f for f in every if f not in left], max_terms) for left in left_out}

    def path(self, left_out: tuple[int, ...], target: Float[ndarray, " d"]) -> Float[ndarray, "terms phrases"]:
        """Return the factors of the directions of the phrases, for 1, 2, ... terms."""
        return self._learned[left_out].path(target)

    def directions(self) -> Float[ndarray, "phrases d"]:
        """Return the directions of the phrases in all samples."""
        return self._learned[()].directions

    def cross_fitted(self, target: Float[ndarray, " d"]) -> tuple[float, Float[ndarray, "folds terms d"]]:
        """Return the cosine with a number of terms that is chosen without the scored fold, and the sums of all folds.

        The sum of each fold has its factors from the other folds and its directions from the fold, which share no
        sample. The mean of these sums is compared with the target: it is less noisy than the sum of one fold.
        """
        every = range(self.n_folds)
        inner: list[list[NDArray[np.float64]]] = [[] for _ in every]
        for one, other in combinations(every, 2):
            factors = self.path((one, other), target)
            inner[one].append(_weighted(factors, self.held_out[other]))
            inner[other].append(_weighted(factors, self.held_out[one]))
        outer = [_weighted(self.path((fold,), target), self.held_out[fold]) for fold in every]
        chosen = np.zeros(len(target))
        for fold in every:
            n = _chosen_number(np.stack(inner[fold]), target)
            chosen += outer[fold][n - 1] if n else 0.0
        return float(_cosines(chosen, target)), np.stack(outer)


class _Dictionary:
    """Directions of the phrases in some folds, as atoms of matching pursuit."""

    def __init__(self, sums: _FoldSums, folds: Sequence[int], max_terms: int) -> None:
        self.directions = sums.directions(folds)
        self.norms = np.linalg.norm(self.directions, axis=1, keepdims=True)
        self.norms[self.norms == 0] = 1.0  # a phrase that changes no feature stays at 0, and is never chosen
        self._unit = self.directions / self.norms
        self._gram = self._unit @ self._unit.T
        self._n = max_terms

    def path(self, target: Float[ndarray, " d"]) -> Float[ndarray, "terms phrases"]:
        from sklearn.linear_model import orthogonal_mp_gram  # heavy

        n_phrases = len(self._unit)
        with warnings.catch_warnings():  # what is left is orthogonal to all phrases: more of them change nothing
            warnings.filterwarnings("ignore", message="\\s*Orthogonal matching pursuit ended", category=RuntimeWarning)
            found = orthogonal_mp_gram(
                self._gram, self._unit @ target, n_nonzero_coefs=min(self._n, n_phrases), return_path=True
            )
        factors = np.zeros((self._n, n_phrases))
        steps = found.reshape(n_phrases, found.size // n_phrases).T  # the solver drops axes of length 1
        if len(steps):
            factors[: len(steps)], factors[len(steps) :] = steps, steps[-1]
        return factors / self.norms[:, 0]


def _terms(
    fit: _Fit, target: Float[ndarray, " d"], n: int, names: Sequence[str], opposites: Sequence[tuple[str, ...]]
) -> tuple[tuple[Term, ...], float]:
    """Return the terms of the fit to all samples, and its cosine on them."""
    if not n:
        return (), 0.0
    factors = fit.path((), target)[n - 1]
    directions = fit.directions()
    norms = np.linalg.norm(directions, axis=1)
    signs = np.stack([np.sign(fit.path((fold,), target)[n - 1]) for fold in range(fit.n_folds)])
    terms = [
        Term(
            phrase=names[i], opposite=opposites[i], coefficient=float(factors[i] * norms[i]),
            cosine=float(_cosines(directions[i], target)),
            n_folds=int((signs[:, i] == np.sign(factors[i])).sum()),
        )
        for i in np.flatnonzero(factors).tolist()
    ]  # fmt: skip
    fitted = float(_cosines(factors @ directions, target))
    return tuple(sorted(terms, key=lambda term: (-term.coefficient, term.phrase))), fitted


def _shuffled_cosine(
    x: Float[ndarray, "samples d"],
    present: Bool[ndarray, "samples phrases"],
    folds: Int[ndarray, " samples"],
    n_folds: int,
    groups: Int[ndarray, " samples"],
    target: Float[ndarray, " d"],
    max_terms: int,
    seed: int,
) -> float:
    """Return the cosine with captions exchanged between groups; 0 where no phrase is left in all folds."""
    drawn = present[shuffle_captions(np.arange(len(x)), groups, seed=seed)]
    drawn = drawn[:, _usable(drawn, folds, n_folds)]
    if not drawn.shape[1]:
        return 0.0
    return _Fit(_FoldSums(x, drawn, folds, n_folds), max_terms).cross_fitted(target)[0]


def _distinct(bank: PhraseBank) -> tuple[list[str], list[tuple[str, ...]], Bool[ndarray, "samples phrases"]]:
    """Return the phrases in alphabetical order, without those of exactly the samples that an earlier one does not have.

    Returns: the phrases, the ones left out for each, and which samples have them.
    """
    place: dict[bytes, int] = {}
    names, opposites, columns = list[str](), list[list[str]](), []
    for i in sorted(range(len(bank.phrases)), key=lambda i: bank.phrases[i]):
        has = bank.present[:, i]
        if (~has).tobytes() in place:
            opposites[place[(~has).tobytes()]].append(bank.phrases[i])
            continue
        place[has.tobytes()] = len(names)
        names.append(bank.phrases[i])
        opposites.append([])
        columns.append(has)
    return names, [tuple(found) for found in opposites], np.stack(columns, axis=1)


def _usable(
    present: Bool[ndarray, "samples phrases"], folds: Int[ndarray, " samples"], n_folds: int
) -> Bool[ndarray, " phrases"]:
    """Return which phrases are present, and absent, in every fold."""
    parts = [present[folds == k] for k in range(n_folds)]
    found: NDArray[np.bool_] = np.all([part.any(0) & ~part.all(0) for part in parts], axis=0)
    return found


def _chosen_number(sums: Float[ndarray, "folds terms d"], target: Float[ndarray, " d"]) -> int:
    """Return the least number of terms that is not worse than the best one by more than one standard error.

    The best number has the largest cosine of the mean sum; the error is that of the difference over the folds (Breiman
    et al., 1984, section 3.4.3). 0 if no cosine is positive.
    """
    means = _cosines(sums.mean(0), target)
    best = int(np.argmax(means))
    if means[best] <= 0:
        return 0
    each = _cosines(sums, target)
    loss = each[:, best : best + 1] - each
    allowed = loss.mean(0) <= loss.std(0, ddof=1) / np.sqrt(len(sums))
    return int(np.flatnonzero((allowed & (means > 0))[: best + 1])[0]) + 1


def _weighted(
    factors: Float[ndarray, "terms phrases"], directions: Float[ndarray, "phrases d"]
) -> Float[ndarray, "terms d"]:
    used = factors.any(0)
    found: NDArray[np.float64] = factors[:, used] @ directions[used]
    return found


def _cosines(sums: Float[ndarray, "*n d"], target: Float[ndarray, " d"]) -> Float[ndarray, "*n"]:
    """Return the cosine of each sum with a unit vector; 0 for a sum of length 0."""
    norms = np.linalg.norm(sums, axis=-1)
    return np.divide(sums @ target, norms, out=np.zeros(norms.shape), where=norms > 0)


def _unit(rows: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    found: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def _checked(
    bank: PhraseBank,
    features: Float[ndarray, "samples d"],
    direction: Float[ndarray, " d_direction"],
    random: Float[ndarray, "d_random draws"],
    groups: Sequence[str],
    max_terms: int,
    n_folds: int,
    n_permutations: int,
) -> tuple[Float[ndarray, "samples d"], Float[ndarray, " d"]]:
    """Return centred features and the unit direction, float64. Raises: see `decompose`."""
    n, width = features.shape
    if not len(bank.present) == len(groups) == n:
        raise ConfigError(f"captions of {len(bank.present)} samples, {len(groups)} groups, features of {n} samples.")
    if not len(direction) == len(random) == width:
        raise ConfigError(
            f"a direction of {len(direction)} numbers and random ones of {len(random)} for features of {width}."
        )
    if max_terms < 1 or n_folds < 3 or n_permutations < 1 or not random.shape[1]:
        raise ConfigError(
            f"max_terms={max_terms}, n_folds={n_folds}, n_permutations={n_permutations}, {random.shape[1]} random "
            "directions: out of range.",
            "allowed: at least 1; at least 3 folds, since one is scored and one chooses the number of terms",
        )
    for what, values in (("features", features), ("direction", direction), ("random directions", random)):
        if not np.isfinite(values).all():
            raise NonFinite(f"the {what} of a decomposition contain NaN or infinity.")
    length = np.linalg.norm(direction.astype(np.float64))
    if not length > 0 or not np.linalg.norm(random, axis=0).all():
        raise EmptyClass("a direction of length 0 cannot be written in words.")
    x = features.astype(np.float64)
    return x - x.mean(0), direction.astype(np.float64) / length
