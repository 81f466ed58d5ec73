"""Phrases along a direction: against plain loops, on planted and on unrelated captions."""

import numpy as np
import pytest

from diffprobe.analysis.phrase_ranking import PhraseBank, phrase_scores, phrases_of, rank_phrases
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite


def sampled(n_groups=60, effect=1.5, seed=0):
    """Four samples per group; "red" varies within groups and moves the coordinate, "cat" is of whole groups."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), 4)
    red = np.tile([True, True, False, False], n_groups)
    cat = groups % 3 == 0
    coordinate = generator.normal(size=n_groups)[groups] + generator.normal(size=len(groups)) + effect * red
    captions = [f"{'red' if r else 'blue'} toy, a {'cat' if c else 'dog'}" for r, c in zip(red, cat, strict=True)]
    return captions, groups.tolist(), coordinate, generator.normal(size=(len(groups), 50))


def test_phrases_do_not_cross_clauses() -> None:
    assert phrases_of("Red toy, a cat", 2) == {"red", "toy", "red toy", "a", "cat", "a cat"}
    assert phrases_of("medium-light skin tone", 3) >= {"medium-light", "medium-light skin tone"}
    assert phrases_of("") == set()


def test_scores_equal_plain_means() -> None:
    captions, groups, coordinate, _ = sampled()
    bank = PhraseBank.of(captions, groups)
    found = phrase_scores(bank.present, coordinate[:, None])[:, 0]
    for phrase, score in zip(bank.phrases, found, strict=True):
        has = np.array([phrase in caption for caption in captions])
        expected = (coordinate[has].mean() - coordinate[~has].mean()) / coordinate.std()
        assert score == pytest.approx(expected)
    assert phrase_scores(bank.present, 7 - 3 * coordinate[:, None])[:, 0] == pytest.approx(-found)


def test_phrases_in_the_same_samples_are_one_and_common_ones_are_left_out() -> None:
    captions, groups, _, _ = sampled()
    bank = PhraseBank.of(captions, groups)
    assert bank.phrases == ("a cat", "a dog", "blue toy", "red toy")
    assert bank.same == (("cat",), ("dog",), ("blue",), ("red",))
    assert set(bank.left_out) == {"a", "toy"}
    given = PhraseBank.of(captions, groups, phrases=["Red toy", "green"])
    assert given.phrases == ("red toy",) and given.left_out == ("green",)


def test_a_planted_word_is_first_and_chance_is_not_found() -> None:
    captions, groups, coordinate, random = sampled()
    bank = PhraseBank.of(captions, groups)
    ranked = rank_phrases(bank, coordinate, random, groups, text=coordinate, n_permutations=199, n_resamples=200)
    first, last = ranked[0], ranked[-1]
    assert (first.phrase, last.phrase) == ("red toy", "blue toy")
    assert first.q <= 0.05 and first.random_quantile == 1 and last.random_quantile == 0
    assert first.interval is not None and 0 < first.interval[0] < first.score < first.interval[1]
    assert first.smallest_p == pytest.approx(2 / 200) and first.text_score == pytest.approx(first.score)
    assert all(one.q > 0.05 for one in ranked if one.phrase in ("a cat", "a dog"))


def test_p_keeps_groups_and_is_calibrated() -> None:
    grouped, single = [], []
    for seed in range(40):
        captions, groups, coordinate, random = sampled(n_groups=24, effect=0, seed=seed)
        bank = PhraseBank.of(captions, groups, phrases=["cat"], min_count=1)
        for p, names in ((grouped, groups), (single, list(range(len(groups))))):
            p.append(rank_phrases(bank, coordinate, random, names, n_permutations=99, n_resamples=20)[0].p)
    found = [float(np.mean(np.array(p) <= 0.1)) for p in (grouped, single)]
    assert found[0] <= 0.25 < found[1]  # samples of a group share half of their variance


def test_groups_of_different_sizes_are_exchanged() -> None:
    sizes = np.where(np.arange(40) < 10, 1, 8)
    groups = np.repeat(np.arange(40), sizes)
    coordinate = np.random.default_rng(0).normal(size=len(groups)) + 3 * (groups < 10)
    bank = PhraseBank.of(["cat" if group < 10 else "dog" for group in groups], groups.tolist(), phrases=["cat"])
    random = np.random.default_rng(1).normal(size=(len(groups), 5))
    (found,) = rank_phrases(bank, coordinate, random, groups.tolist(), n_permutations=99, n_resamples=20)
    assert found.p == pytest.approx(2 / 100)


def test_the_order_of_samples_does_not_matter() -> None:
    captions, groups, coordinate, random = sampled()
    order = np.random.default_rng(1).permutation(len(captions))
    one = PhraseBank.of(captions, groups)
    other = PhraseBank.of([captions[i] for i in order], [groups[i] for i in order])
    assert one.phrases == other.phrases
    found = [phrase_scores(one.present, random), phrase_scores(other.present, random[order])]
    np.testing.assert_allclose(*found, atol=1e-12)


def test_bad_input() -> None:
    captions, groups, coordinate, random = sampled(n_groups=6)
    with pytest.raises(EmptyClass, match="100 samples"):
        PhraseBank.of(captions, groups, min_count=100)
    with pytest.raises(ConfigError, match="24 captions for 23 groups"):
        PhraseBank.of(captions, groups[1:])
    with pytest.raises(ConfigError, match="no word"):
        PhraseBank.of(captions, groups, phrases=["cat", ", ,"])
    with pytest.raises(ConfigError, match="min_count=0"):
        PhraseBank.of(captions, groups, min_count=0)
    bank = PhraseBank.of(captions, groups, min_count=2, min_groups=2)
    with pytest.raises(EmptyClass, match="same coordinate"):
        rank_phrases(bank, np.ones(24), random, groups)
    coordinate[3] = np.nan
    with pytest.raises(NonFinite):
        rank_phrases(bank, coordinate, random, groups)
