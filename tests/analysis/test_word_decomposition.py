"""Directions as sums of words: against plain least squares, on planted sums and where there is nothing to find."""

import dataclasses

import numpy as np
import pytest

from diffprobe.analysis.phrase_ranking import PhraseBank
from diffprobe.analysis.word_decomposition import decompose
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, TooFewGroups
from diffprobe.probes.grouped_folds import unlabelled_folds

WORDS = ("apple", "bear", "cloud", "drum", "egg", "flag")
WIDTH = 40


def world(n_groups=60, per_group=4, noise=0.5, seed=0):
    """Each word is in about half of the captions, and adds its own vector to the features."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    has = generator.random((len(groups), len(WORDS))) < 0.5
    vectors = np.linalg.qr(generator.normal(size=(WIDTH, len(WORDS))))[0].T
    x = has @ vectors + noise * generator.normal(size=(len(groups), WIDTH))
    captions = [", ".join(np.array(WORDS)[row]) for row in has]
    return captions, [f"g{group}" for group in groups], x, vectors


def drawn(n, seed=7):
    return np.random.default_rng(seed).normal(size=(WIDTH, n))


def found(world_, direction, n=19, **settings):
    captions, groups, x, _ = world_
    bank = PhraseBank.of(captions, groups)
    return decompose(bank, x, direction, drawn(n), groups, **{"n_permutations": n, **settings})


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_planted_sum_is_found_with_its_signs_and_factors():
    planted = world(noise=0.2)
    vectors = planted[3]
    result = found(planted, 5 * (0.8 * vectors[1] - 0.6 * vectors[4]))
    assert [term.phrase for term in result.terms] == ["bear", "egg"]
    assert [term.coefficient for term in result.terms] == pytest.approx([0.8, -0.6], abs=0.1)
    assert all(term.n_folds == result.n_folds == 4 for term in result.terms)
    assert result.cosine > 0.95 and result.random.quantile == result.shuffled.quantile == 1
    assert result.random.p == result.shuffled.p == pytest.approx(1 / 20)


def test_the_fit_to_all_samples_is_least_squares_on_the_chosen_words():
    planted = world()
    captions, _, x, vectors = planted
    target = (vectors[0] + vectors[2] - 2 * vectors[3]) / np.sqrt(6)
    result = found(planted, target)
    columns = []
    for term in result.terms:
        has = np.array([term.phrase in caption for caption in captions])
        columns.append(x[has].mean(0) - x[~has].mean(0))
    unit = np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
    expected, *_ = np.linalg.lstsq(unit, target, rcond=None)
    assert [term.coefficient for term in result.terms] == pytest.approx(expected.tolist())
    assert [term.cosine for term in result.terms] == pytest.approx((unit.T @ target).tolist())
    assert result.fitted_cosine == pytest.approx(cosine(unit @ expected, target))


def test_the_path_is_that_of_plain_loops():
    planted = world(n_groups=30)
    captions, groups, x, vectors = planted
    target = vectors[0] / 2 + vectors[5]
    result = found(planted, target, max_terms=2, n_folds=3)
    folds = unlabelled_folds(groups, n_folds=3, seed=0)
    has = {word: np.array([word in caption for caption in captions]) for word in WORDS}

    def directions(rows):
        return {word: x[rows & has[word]].mean(0) - x[rows & ~has[word]].mean(0) for word in WORDS}

    sums = np.zeros((2, WIDTH))
    for fold in range(3):
        fit, score = directions(folds != fold), directions(folds == fold)
        chosen, rest = [], target
        for n in range(2):
            chosen.append(max((w for w in WORDS if w not in chosen), key=lambda w: abs(cosine(fit[w], rest))))
            matrix = np.stack([fit[word] for word in chosen], axis=1)
            factors, *_ = np.linalg.lstsq(matrix, target, rcond=None)
            rest = target - matrix @ factors
            sums[n] += sum(factor * score[word] for factor, word in zip(factors, chosen, strict=True))
    assert result.path == pytest.approx([cosine(one, target) for one in sums])


@pytest.mark.slow
def test_captions_without_meaning_describe_no_direction():
    p, scores, fitted = [], [], []
    for seed in range(10):
        captions, groups, x, _ = world(noise=1, seed=seed)
        unrelated = np.random.default_rng(100 + seed).normal(size=x.shape)
        bank = PhraseBank.of(captions, groups)
        result = decompose(bank, unrelated, drawn(1, seed)[:, 0], drawn(1), groups, n_permutations=19, seed=seed)
        p.append(result.shuffled.p)
        scores.append(result.cosine)
        fitted.append(result.fitted_cosine)
    assert abs(np.mean(scores)) < 0.1 and np.mean(np.array(p) <= 0.05) <= 0.25
    assert 0.1 < np.mean(p) < 0.9


def test_more_words_fit_better_but_do_not_score_better():
    """In 40 dimensions 6 noisy words fit a random direction; on other samples they are other directions."""
    captions, groups, x, _ = world(n_groups=12, noise=1)
    unrelated = np.random.default_rng(3).normal(size=x.shape)
    bank = PhraseBank.of(captions, groups, min_count=3)
    of_fit, held_out = [], []
    for seed in range(20):
        target = drawn(1, seed)[:, 0]
        result = decompose(bank, unrelated, target, drawn(2), groups, n_folds=3, n_permutations=1)
        held_out.append(result.path[-1])
        matrix = np.stack([
            unrelated[bank.present[:, i]].mean(0) - unrelated[~bank.present[:, i]].mean(0)
            for i in range(len(bank.phrases))
        ], axis=1)  # fmt: skip
        of_fit.append(cosine(matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0], target))
    assert np.mean(of_fit) > 0.3 and abs(np.mean(held_out)) < 0.15


@pytest.mark.slow
def test_a_random_direction_is_no_better_than_random_ones():
    planted = world()
    quantiles = [found(planted, drawn(1, 50 + seed)[:, 0], n=19, max_terms=3).random.quantile for seed in range(8)]
    assert 0.25 < np.mean(quantiles) < 0.75


def test_neither_the_order_of_the_bank_nor_of_the_samples_matters():
    captions, groups, x, vectors = world()
    bank = PhraseBank.of(captions, groups)
    target = vectors[0] - vectors[1] + drawn(1)[:, 0] / 20
    one = decompose(bank, x, target, drawn(5), groups, n_permutations=5)
    order = np.random.default_rng(1).permutation(len(bank.phrases))
    turned = PhraseBank(
        phrases=tuple(bank.phrases[i] for i in order), same=tuple(bank.same[i] for i in order),
        present=bank.present[:, order], left_out=bank.left_out,
    )  # fmt: skip
    other = decompose(turned, x, target, drawn(5), groups, n_permutations=5)
    assert other.terms == one.terms and other.path == one.path and other.cosine == one.cosine
    assert other.shuffled.values.tolist() == one.shuffled.values.tolist()
    rows = np.random.default_rng(2).permutation(len(x))
    moved = dataclasses.replace(bank, present=bank.present[rows])
    again = decompose(moved, x[rows], target, drawn(5), [groups[i] for i in rows], n_permutations=5)
    assert again.path == pytest.approx(one.path)
    assert [(term.phrase, term.n_folds) for term in again.terms] == [(t.phrase, t.n_folds) for t in one.terms]


def test_length_and_sign_of_the_direction():
    planted = world()
    target = planted[3][0] - planted[3][1]
    one, longer, reverse = (found(planted, factor * target) for factor in (1, 40, -1))
    assert longer.cosine == pytest.approx(one.cosine) and reverse.cosine == pytest.approx(one.cosine)
    assert {t.phrase: t.coefficient for t in reverse.terms} == pytest.approx(
        {t.phrase: -t.coefficient for t in one.terms}
    )


def test_a_phrase_and_its_reverse_are_one():
    captions, groups, x, vectors = world()
    captions = [caption + (", zebra" if "apple" not in caption else "") for caption in captions]
    bank = PhraseBank.of(captions, groups)
    result = decompose(bank, x, vectors[0], drawn(5), groups, n_permutations=5)
    assert (result.terms[0].phrase, result.terms[0].opposite) == ("apple", ("zebra",))
    assert result.n_phrases == len(WORDS)


def test_dependent_phrases_end_the_sum_early():
    """A phrase whose vector adds nothing: fewer phrases than terms, and a direction outside of what they span."""
    captions, groups, x, vectors = world(noise=0)
    bank = PhraseBank.of(captions, groups, phrases=["apple"])
    result = decompose(bank, x, vectors[0], drawn(3), groups, n_permutations=3, max_terms=9)
    assert len(result.path) == 9 and len(result.terms) == 1


def test_bad_input():
    captions, groups, x, vectors = world(n_groups=20)
    bank = PhraseBank.of(captions, groups)
    settings = {"n_permutations": 2}
    for wrong, fact in (
        ((bank, x[1:], vectors[0], drawn(2), groups), "79 samples"),
        ((bank, x, vectors[0][1:], drawn(2), groups), "39 numbers"),
        ((bank, x, vectors[0], drawn(2)[:, :0], groups), "0 random"),
    ):
        with pytest.raises(ConfigError, match=fact):
            decompose(*wrong, **settings)
    for name, value in (("max_terms", 0), ("n_folds", 2), ("n_permutations", 0)):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            decompose(bank, x, vectors[0], drawn(2), groups, **{**settings, name: value})
    with pytest.raises(EmptyClass, match="length 0"):
        decompose(bank, x, 0 * vectors[0], drawn(2), groups, **settings)
    with pytest.raises(TooFewGroups, match="2 groups"):
        decompose(bank, x, vectors[0], drawn(2), ["a", *["b"] * (len(x) - 1)], **settings)
    rare = dataclasses.replace(bank, present=np.arange(len(x))[:, None] == np.zeros((1, len(bank.phrases))))
    with pytest.raises(EmptyClass, match="4 folds"):
        decompose(rare, x, vectors[0], drawn(2), groups, **settings)
    x[2, 3] = np.nan
    with pytest.raises(NonFinite, match="features"):
        decompose(bank, x, vectors[0], drawn(2), groups, **settings)
