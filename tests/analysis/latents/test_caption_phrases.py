"""Phrases of captions as a sparse table."""

import numpy as np
import pytest

from diffprobe.analysis.latents.caption_phrases import CaptionPhrases
from diffprobe.analysis.phrase_ranking import PhraseBank, phrases_of
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

CAPTIONS = ["a red cat", "a red dog", "Blue cat, old", "blue dog", "", "a red cat, old", "<b>blue</b> cat"]


def alone(n):
    return Groups.of_values(np.full(n, -1))


def test_entries_are_the_images_that_have_a_phrase():
    found = CaptionPhrases.of(CAPTIONS, alone(7), min_count=2, min_groups=1, max_words=2)
    matrix = found.matrix().toarray()
    for i, phrase in enumerate(found.phrases):
        has = [phrase in phrases_of(caption, 2) for caption in CAPTIONS]
        assert matrix[:, i].tolist() == has and found.n_with[i] == sum(has) >= 2
        assert found.images_with(i).tolist() == np.flatnonzero(has).tolist()
    assert "cat" in found.phrases and "blue dog" not in found.phrases


def test_the_longest_of_phrases_in_the_same_images_stays():
    found = CaptionPhrases.of(CAPTIONS, alone(7), min_count=2, min_groups=1, max_words=2)
    i = found.phrases.index("a red")
    assert set(found.same[i]) == {"red"}  # "a" is a function word
    assert not {"a", "red"} & set(found.phrases)


def test_the_phrases_are_those_of_the_dense_bank():
    generator = np.random.default_rng(0)
    captions = [" ".join(generator.choice(list("bcdefghj"), 3)) for _ in range(60)]
    bank = PhraseBank.of(captions, range(60), min_count=5, min_groups=1)
    found = CaptionPhrases.of(captions, alone(60), min_count=5, min_groups=1)
    assert found.phrases == bank.phrases and found.same == bank.same
    np.testing.assert_array_equal(found.matrix().toarray() > 0, bank.present)


@pytest.mark.parametrize("min_groups", [2, 3, 4])
def test_rare_groups_are_counted_as_in_the_dense_bank(min_groups):
    generator = np.random.default_rng(1)
    captions = [" ".join(generator.choice(list("bcdefghj"), 2)) for _ in range(40)]
    group = np.repeat(np.arange(8), 5)
    found = CaptionPhrases.of(captions, Groups.of_values(group), min_count=3, min_groups=min_groups)
    bank = PhraseBank.of(captions, group.tolist(), min_count=3, min_groups=min_groups)
    assert found.phrases == bank.phrases


def test_phrases_are_found_in_other_captions_in_their_order():
    found = CaptionPhrases.find(["red cat", "dog"], CAPTIONS)
    assert found.phrases == ("red cat", "dog")
    assert [found.images_with(i).tolist() for i in range(2)] == [[0, 5], [1, 3]]
    more = found.extended(["dog", "old"], CAPTIONS)
    assert more.phrases == ("red cat", "dog", "old") and more.images_with(2).tolist() == [2, 5]
    assert more.images_with(0).tolist() == [0, 5] and found.extended(["dog"], CAPTIONS) is found


def test_the_most_frequent_phrases_stay_and_none_may():
    found = CaptionPhrases.of(CAPTIONS, alone(7), min_count=1, min_groups=1, max_words=1, max_phrases=2)
    assert set(found.phrases) == {"cat", "red"} or len(found.phrases) == 2
    assert sorted(found.n_with) == [3, 4]
    empty = CaptionPhrases.of(["", ""], alone(2), min_count=1)
    assert empty.phrases == () and empty.matrix().shape == (2, 0)
    with pytest.raises(ConfigError, match="max_words=0"):
        CaptionPhrases.of(CAPTIONS, alone(7), max_words=0)
