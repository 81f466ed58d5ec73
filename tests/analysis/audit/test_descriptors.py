"""Descriptors of subjects and of directions."""

import numpy as np
import pytest

from diffprobe.analysis.audit.descriptors import both_ends, cosines, describe_subjects
from diffprobe.core.errors import ConfigError

RNG = np.random.default_rng(0)
BANK = RNG.normal(size=(30, 12))
WORDS = [f"word {i}" for i in range(30)]


def test_subjects_are_described_by_the_most_similar_words() -> None:
    subjects = BANK[[3, 17]] + 0.1 * RNG.normal(size=(2, 12))
    found = describe_subjects(subjects, BANK, WORDS, n=4)
    assert [one[0].word for one in found] == ["word 3", "word 17"] and len(found[0]) == 4
    plain = [float(subjects[0] @ row / np.linalg.norm(subjects[0]) / np.linalg.norm(row)) for row in BANK]
    assert [word.word for word in found[0]] == [WORDS[i] for i in np.argsort(-np.array(plain))[:4]]
    assert found[0][0].cosine == pytest.approx(max(plain))


def test_both_ends_are_the_outermost_words() -> None:
    bank = BANK.copy()
    bank[5, 0], bank[9, 0] = 30.0, -30.0
    positive, negative = both_ends(np.eye(12)[0], bank, WORDS, n=3)
    assert positive[0].word == "word 5" and negative[0].word == "word 9"
    assert positive[0].cosine > positive[1].cosine and negative[0].cosine < negative[1].cosine
    assert positive[0].percentile > 0.95


def test_ends_of_a_random_direction_are_not_beyond_random_directions() -> None:
    shares = []
    for seed in range(40):
        unit = np.random.default_rng(seed).normal(size=12)
        positive, _ = both_ends(unit / np.linalg.norm(unit), BANK, WORDS, n=15)
        shares += [word.percentile for word in positive]
    assert 0.4 < np.mean(shares) < 0.6


def test_the_middle_of_the_bank_does_not_matter() -> None:
    one, other = (both_ends(np.eye(12)[0], bank, WORDS, n=3) for bank in (BANK, BANK + 7.0))
    assert [word.word for word in one[0]] == [word.word for word in other[0]]


def test_a_zero_row_has_cosine_zero() -> None:
    assert cosines(np.zeros((1, 12)), BANK).tolist() == [[0.0] * 30]


def test_other_numbers_of_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 descriptors for 30"):
        describe_subjects(BANK, BANK, WORDS[:2])
    with pytest.raises(ConfigError, match="at least 2"):
        both_ends(np.eye(12)[0], BANK[:1], WORDS[:1])
