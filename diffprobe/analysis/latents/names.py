"""Names of latents: phrases of captions that are found on one split and tested on another.

On train, a phrase is scored for a latent by how much more often it is in the captions of the images on which the latent
is active than in those of the others: a log odds ratio, with a prior that pulls rare phrases to the rate of all
captions (Monroe, Colaresi and Quinn 2008, Fightin' words, Political Analysis). Each group counts as one image there, so
that the variants of one drawing are not taken for as much evidence as other drawings. On held-out images the question
is the reverse: does "the caption has the phrase" predict "the latent is active"? Its AUROC has a p by permutations that
keep groups, and all tests of all latents are corrected together. A phrase that fails is kept, but does not name the
latent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.caption_phrases import CaptionPhrases
from diffprobe.analysis.latents.permutation_tests import (
    PermutationSettings,
    SparseWeights,
    adjusted,
    permuted_p,
)
from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.analysis.phrase_ranking import words_in_order
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_LATENTS = 2048
"""Latents whose counts with all phrases are held at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedCodes:
    """Codes of a split with the captions of its images.

    Raises: ConfigError for captions or groups of another number of images.
    """

    codes: SparseCodes
    """Activations."""
    captions: Sequence[str]
    """Caption of each image, "" for none."""
    groups: Groups
    """Group of each image."""

    def __post_init__(self) -> None:
        if len(self.captions) != self.codes.n_images or len(self.groups.ids) != self.codes.n_images:
            raise ConfigError(
                f"{len(self.captions)} captions and {len(self.groups.ids)} groups for {self.codes.n_images} images."
            )


@dataclass(frozen=True, kw_only=True)
class NameSettings:
    """How phrases are found and tested."""

    n_candidates: int = 3
    """Phrases of each latent that are tested, those with the largest z on train."""
    least_z: float = 3.0
    """Least z on train of a phrase that is tested: fewer tests leave more power to each."""
    prior: float = 10.0
    """Weight of the prior, in groups (images where these are independent)."""
    max_words: int = 3
    """Largest number of words of a phrase."""
    min_count: int = 10
    """Least number of training images with a phrase, and without it; and of images on which a latent is active."""
    min_groups: int = 5
    """Least number of training groups with a phrase, and without it."""
    min_test_groups: int = 3
    """Least number of held-out groups with a phrase, and without it, for a test: one drawing does not show that a name
    holds."""
    max_phrases: int = 5000
    """Largest number of phrases; the most frequent ones stay."""
    rate: float = 0.05
    """False discovery rate below which a name is shown."""
    least_auroc: float = 0.6
    """Least held-out AUROC of a name that is shown: in many images, a phrase that hardly predicts passes the test."""
    permutations: PermutationSettings = PermutationSettings()
    """Permutations of the captions, by group; without groups, Fisher's exact test takes their place."""

    def __post_init__(self) -> None:
        if self.n_candidates < 1 or self.prior <= 0 or self.min_count < 1 or not 0 < self.rate < 1:
            raise ConfigError(
                f"names: n_candidates={self.n_candidates}, prior={self.prior}, min_count={self.min_count}, "
                f"rate={self.rate}.",
                "allowed: at least 1, above 0, at least 1, between 0 and 1",
            )


@dataclass(frozen=True, kw_only=True)
class LatentName:
    """A phrase for a latent, with its test."""

    phrase: str
    """The phrase; of several in the same training images the longest."""
    same: tuple[str, ...]
    """The others."""
    score: float
    """Log odds ratio on train, with the prior: how much more often captions of active images have it."""
    z: float
    """The score in standard errors, on train."""
    auroc: float | None
    """AUROC of the phrase for the latent's activity on held-out images; None if none or all of them have it, or the
    latent is active on none or all of them."""
    p: float | None
    """One-sided p of the AUROC; None where too few held-out groups have the phrase, or nothing can be predicted."""
    q: float | None
    """p adjusted for all phrases of all latents that were tested."""
    shown: bool
    """Whether the name passed: q at most `rate`, and AUROC at least `least_auroc`."""


def latent_names(
    train: CaptionedCodes,
    test: CaptionedCodes,
    settings: NameSettings | None = None,
    *,
    answers: Mapping[int, str] | None = None,
) -> list[tuple[LatentName, ...]]:
    """Find names of all latents on train, and test them on test.

    Args:
        train, test: two splits of disjoint groups.
        settings: how; None for the defaults.
        answers: latent -> a name that someone gave it (`namers.py`), tested beside the candidates whatever its z.

    Returns: for each latent its candidates, those that passed first, then by AUROC; none for a latent that is active on
        fewer than `min_count` training images, or of which no phrase reaches `least_z`.
    Raises: ConfigError for codes of different numbers of latents, or an answer for another latent.
    """
    settings = NameSettings() if settings is None else settings
    if train.codes.n_latents != test.codes.n_latents:
        raise ConfigError(f"codes of {train.codes.n_latents} latents in train and {test.codes.n_latents} in test.")
    phrases = CaptionPhrases.of(
        train.captions, train.groups, max_words=settings.max_words, min_count=settings.min_count,
        min_groups=settings.min_groups, max_phrases=settings.max_phrases,
    )  # fmt: skip
    latent, phrase, score, z = _candidates(train, phrases, settings)
    if answers:
        phrases, *pairs = _with_answers(train, phrases, answers, (latent, phrase), settings.prior)
        latent, phrase, score, z = (
            np.concatenate([old, new]) for old, new in zip((latent, phrase, score, z), pairs, strict=True)
        )
    found: list[list[LatentName]] = [[] for _ in range(train.codes.n_latents)]
    if not len(latent):
        return [tuple(names) for names in found]
    held_out = CaptionPhrases.find(phrases.phrases, test.captions)
    area, p = _tested(test, held_out, latent, phrase, settings)
    q = adjusted(p)
    for i, owner in enumerate(latent.tolist()):
        known = not np.isnan(p[i])
        found[owner].append(LatentName(
            phrase=phrases.phrases[phrase[i]], same=phrases.same[phrase[i]], score=float(score[i]), z=float(z[i]),
            auroc=None if np.isnan(area[i]) else float(area[i]), p=float(p[i]) if known else None,
            q=float(q[i]) if known else None,
            shown=bool(known and q[i] <= settings.rate and area[i] >= settings.least_auroc),
        ))  # fmt: skip
    return [tuple(sorted(names, key=_rank)) for names in found]


def log_odds(
    active_with: Floats, n_active: Floats, n_with: Floats, n_images: int, *, prior: float
) -> tuple[Floats, Floats]:
    """Return the log odds ratio of having a phrase between active and other images, and its z.

    The prior adds `prior` images to either side, a share of which has the phrase as in all images.

    Args:
        active_with: active images with the phrase, a number or a sum of weights.
        n_active: active images.
        n_with: all images with the phrase.
        n_images: number of images.
        prior: weight of the prior, in images, above 0.

    Returns: both of the shape to which the arguments broadcast. z is the ratio over its standard error, from the
        variance of Monroe et al.

    >>> ratio, _ = log_odds(np.array(8.0), np.array(10.0), np.array(16.0), 40, prior=1e-9)
    >>> round(float(np.exp(ratio)), 3)  # 8 of 2 and 8 of 22
    11.0
    """
    share = n_with / n_images
    a, b = active_with + prior * share, n_active - active_with + prior * (1 - share)
    c = n_with - active_with + prior * share
    d = n_images - n_active - n_with + active_with + prior * (1 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(a) - np.log(b) - np.log(c) + np.log(d)
        z = ratio / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    return ratio, z


def phrase_areas(active_with: Floats, n_with: Floats, n_active: Floats, n_images: int) -> Floats:
    """Return the AUROC of having a phrase for being active; NaN where there is nothing to predict.

    Args: as `log_odds`; broadcast.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        area = 0.5 + 0.5 * (active_with / n_active - (n_with - active_with) / (n_images - n_active))
    known = (n_active > 0) & (n_active < n_images) & (n_with > 0) & (n_with < n_images)
    return np.where(known, area, np.nan)


def _candidates(
    train: CaptionedCodes, phrases: CaptionPhrases, settings: NameSettings
) -> tuple[Ints, Ints, Floats, Floats]:
    """Return latent, phrase, log odds ratio and z of the pairs that are tested, by latent and then by z."""
    codes = train.codes
    parts: list[tuple[Ints, Ints, Floats, Floats]] = []
    if not len(phrases.phrases):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    active, has = _weighted(train), phrases.matrix()
    n_active, n_with, n = _weighted_counts(train, phrases, active)
    often = codes.n_active >= settings.min_count
    for start in range(0, codes.n_latents, _LATENTS):
        both = (active[start : start + _LATENTS] @ has).tocoo()  # pairs that never meet are left out
        latent, phrase = both.coords[0].astype(np.int64) + start, both.coords[1].astype(np.int64)
        score, z = log_odds(both.data, n_active[latent], n_with[phrase], n, prior=settings.prior)
        kept = (z >= settings.least_z) & often[latent]
        latent, phrase, score, z = latent[kept], phrase[kept], score[kept], z[kept]
        order = np.lexsort((phrase, -np.round(z, 9), latent))
        latent, phrase, score, z = latent[order], phrase[order], score[order], z[order]
        place = np.arange(len(latent)) - np.searchsorted(latent, latent)
        first = place < settings.n_candidates
        parts.append((latent[first], phrase[first], score[first], z[first]))
    joined = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return joined[0], joined[1], joined[2], joined[3]


def _with_answers(
    train: CaptionedCodes, phrases: CaptionPhrases, answers: Mapping[int, str], known: tuple[Ints, Ints], prior: float
) -> tuple[CaptionPhrases, Ints, Ints, Floats, Floats]:
    """Return the phrases with those of answers, and latent, phrase, log odds ratio and z of answers not yet known."""
    outside = [latent for latent in answers if not 0 <= latent < train.codes.n_latents]
    if outside:
        raise ConfigError(f"a name for latent {outside[0]}; allowed: 0..{train.codes.n_latents - 1}.")
    texts = {latent: " ".join(sum(words_in_order(text), [])) for latent, text in sorted(answers.items())}
    phrases = phrases.extended([text for text in texts.values() if text], train.captions)
    number = {name: i for i, name in enumerate(phrases.phrases)}
    tested = set(zip(known[0].tolist(), known[1].tolist(), strict=True))
    pairs = [(latent, number[text]) for latent, text in texts.items() if text and (latent, number[text]) not in tested]
    latent = np.array([one for one, _ in pairs], dtype=np.int64)
    phrase = np.array([other for _, other in pairs], dtype=np.int64)
    active = _weighted(train)
    both = np.array([
        active[[one]] @ _indicator(phrases, other) for one, other in pairs
    ], dtype=np.float64).reshape(len(pairs))  # fmt: skip
    n_active, n_with, n = _weighted_counts(train, phrases, active)
    score, z = log_odds(both, n_active[latent], n_with[phrase], n, prior=prior)
    return phrases, latent, phrase, np.nan_to_num(score), np.nan_to_num(z)


def _indicator(phrases: CaptionPhrases, number: int) -> Floats:
    has = np.zeros(phrases.n_images)
    has[phrases.images_with(number)] = 1
    return has


def _tested(
    test: CaptionedCodes, phrases: CaptionPhrases, latent: Ints, phrase: Ints, settings: NameSettings
) -> tuple[Floats, Floats]:
    """Return AUROC and p of each pair on held-out images, NaN where there is nothing to predict or no test."""
    from scipy.stats import hypergeom  # heavy

    codes, n = test.codes, test.codes.n_images
    active = _active(codes)
    n_active, n_with = codes.n_active.astype(np.float64)[latent], phrases.n_with.astype(np.float64)[phrase]
    both = np.zeros(len(latent))
    p = np.full(len(latent), np.nan)
    independent = test.groups.n == n
    for number in np.unique(phrase).tolist():
        pairs = np.flatnonzero(phrase == number)
        has = _indicator(phrases, number)
        rows = active[latent[pairs]]
        both[pairs] = rows @ has
        if not _in_groups(has, test.groups, settings.min_test_groups):
            continue
        if independent:
            p[pairs] = hypergeom.sf(both[pairs] - 1, n, n_with[pairs], n_active[pairs])  # one-sided Fisher, exact
            continue
        rows = rows.tocoo()
        weights = SparseWeights(
            test=rows.coords[0].astype(np.int64), image=rows.coords[1].astype(np.int64), weight=rows.data,
            n_tests=len(pairs), n_images=n,
        )  # fmt: skip
        of_pairs = n_active[pairs]

        def area(sums: Floats, n_phrase: Floats, tests: Ints, of_pairs: Floats = of_pairs) -> Floats:
            return phrase_areas(sums, n_phrase, of_pairs[tests, None], n)

        classes = np.ones(len(pairs), dtype=np.int64)
        p[pairs] = permuted_p(weights, classes, has.astype(np.int64), test.groups, area, settings.permutations).p
    areas = phrase_areas(both, n_with, n_active, n)
    return areas, np.where(np.isnan(areas), np.nan, np.clip(p, 1e-300, 1.0))


def _in_groups(has: Floats, groups: Groups, least: int) -> bool:
    """Return whether at least so many groups have an image with a phrase, and one without it."""
    with_phrase, without = groups.ids[has > 0], groups.ids[has == 0]
    return min(len(np.unique(with_phrase)), len(np.unique(without))) >= least


def _weighted(train: CaptionedCodes) -> "csr_array":
    """Return the weight of an image where a latent is active, (latents, images): the weights of a group sum to 1."""
    active = _active(train.codes)
    active.data = _weights(train)[active.indices]
    return active


def _weights(train: CaptionedCodes) -> Floats:
    found: Floats = 1 / np.bincount(train.groups.ids)[train.groups.ids]
    return found


def _weighted_counts(train: CaptionedCodes, phrases: CaptionPhrases, active: "csr_array") -> tuple[Floats, Floats, int]:
    """Return the weight of the active images, of the images with each phrase, and of all images: the groups."""
    return np.asarray(active.sum(1)).ravel(), _weights(train) @ phrases.matrix(), train.groups.n


def _active(codes: SparseCodes) -> "csr_array":
    """Return 1 where a latent is active on an image, (latents, images)."""
    from scipy.sparse import csr_array  # heavy

    ones = np.ones(len(codes.row))
    return csr_array((ones, codes.row, codes.starts), shape=(codes.n_latents, codes.n_images))


def _rank(name: LatentName) -> tuple[bool, float, float, str]:
    return not name.shown, -(name.auroc or 0.0), -name.z, name.phrase
