"""Which words go with a component."""

import numpy as np
import pytest

from diffprobe.analysis.discovery.words import varying_phrases, word_models
from tests.analysis.discovery.planted import planted


def models(made, scores, **settings):
    bank = varying_phrases(made.captions, made.design.subjects)
    assert bank is not None
    chosen = {"n_permutations": 99, "n_resamples": 100, **settings}
    return word_models(scores, bank, made.design.subjects, made.design.blocks, made.names, **chosen)


def scores_of(made):
    noise = np.random.default_rng(3).normal(size=len(made.names))
    x = np.column_stack([made.stated + 0.3 * noise, made.hidden + 0.3 * noise[::-1]])
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("paired", [False, True])
def test_the_stated_attribute_has_words_and_the_hidden_one_has_none(paired):
    made = planted(paired=paired)
    stated, hidden = models(made, scores_of(made))
    named = {one.phrase: one.effect for one in stated.effects if one.p <= 0.05}
    assert named["striped clothes"] > 0.7 and named["plain clothes"] < -0.7
    assert stated.p == pytest.approx(0.01) and stated.explained.low > 0.2  # half of the captions state it
    assert hidden.p > 0.05 and hidden.explained.high < 0.1


def test_words_that_the_subject_decides_are_left_out():
    made = planted()
    bank = varying_phrases(made.captions, made.design.subjects)
    assert bank is not None and not any("role" in phrase for phrase in bank.phrases)
    assert varying_phrases([f"a role{i}" for i in made.design.subjects], made.design.subjects) is None
    assert varying_phrases([""] * len(made.names), made.design.subjects) is None


def test_a_word_of_one_subject_does_not_explain_what_the_subject_does():
    """Subject 0 is high, and half of its captions have a word: the word has no effect within the subject."""
    made = planted()
    x = np.random.default_rng(0).normal(size=(len(made.names), 1)) + 3.0 * (made.design.subjects == 0)[:, None]
    half = np.random.default_rng(1).random(len(x)) < 0.5
    captions = [
        f"a role{i}" + (" here" if i == 0 and has else "") for i, has in zip(made.design.subjects, half, strict=True)
    ]
    bank = varying_phrases(captions, made.design.subjects)
    assert bank is not None
    (found,) = word_models(x / x.std(), bank, made.design.subjects, None, made.names, n_permutations=99, n_resamples=50)
    assert found.p > 0.05


def test_neither_order_nor_names_of_subjects_matter():
    made = planted()
    scores = scores_of(made)
    order = np.random.default_rng(2).permutation(len(scores))
    bank = varying_phrases([made.captions[i] for i in order], made.design.subjects[order])
    assert bank is not None
    again = word_models(
        scores[order], bank, made.design.subjects[order], None, [made.names[i] for i in order], n_permutations=99,
        n_resamples=50,
    )  # fmt: skip
    for one, other in zip(models(made, scores, n_resamples=50), again, strict=True):
        assert one.explained.estimate == pytest.approx(other.explained.estimate, abs=1e-9)
        assert {e.phrase: round(e.effect, 9) for e in one.effects} == {
            e.phrase: round(e.effect, 9) for e in other.effects
        }


def test_chance_rarely_names_a_component():
    made = planted()
    x = np.random.default_rng(5).normal(size=(len(made.names), 60))
    found = models(made, x / x.std(0), n_resamples=20)
    assert np.mean([one.p <= 0.05 for one in found]) < 0.15
