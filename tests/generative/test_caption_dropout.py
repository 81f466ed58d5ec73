import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.generative.caption_dropout import CaptionDropoutConfig, CaptionVocabulary, choose_captions

NONE = CaptionVocabulary([], [])


def test_the_shares_of_captions():
    captions = [(f"main {i}", f"one {i}", f"two {i}") for i in range(4000)]
    rule, generator = CaptionDropoutConfig(main=0.5, p_dropout=0), torch.Generator().manual_seed(0)
    chosen = choose_captions(captions, rule, p_empty=torch.full((4000,), 0.1), generator=generator, vocabulary=NONE)
    assert all(text == "" or text in options for text, options in zip(chosen, captions, strict=True))
    empty = sum(text == "" for text in chosen) / 4000
    main, one = (sum(text.startswith(word) for text in chosen) / 4000 for word in ("main", "one"))
    assert empty == pytest.approx(0.1, abs=0.02)  # standard error 0.005
    assert main == pytest.approx(0.9 * (0.5 + 0.5 / 3), abs=0.03) and one == pytest.approx(0.9 * 0.5 / 3, abs=0.03)


def test_a_choice_is_the_generators_and_all_or_nothing_shares_hold():
    captions = [("a", "b", "c")] * 50

    def choose(seed, main=0.0, drop=0.0):
        generator, rule = torch.Generator().manual_seed(seed), CaptionDropoutConfig(main=main, p_dropout=0)
        return choose_captions(captions, rule, p_empty=torch.full((50,), drop), generator=generator, vocabulary=NONE)

    assert choose(0) == choose(0) != choose(1)
    assert set(choose(0, drop=1.0)) == {""} and set(choose(0, main=1.0)) == {"a"} and set(choose(0)) == {"a", "b", "c"}


def test_word_dropout_drops_words_and_keeps_their_order():
    caption = " ".join(f"w{i}" for i in range(40))
    rule, generator = CaptionDropoutConfig(main=1.0, p_dropout=0.5, word_dropout=0.25), torch.Generator().manual_seed(0)
    chosen = choose_captions([(caption,)] * 400, rule, p_empty=torch.zeros(400), generator=generator, vocabulary=NONE)
    cut = [text.split() for text in chosen if text != caption]
    assert len(cut) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum(map(len, cut)) / len(cut) / 40 == pytest.approx(0.75, abs=0.05)
    assert all([int(word[1:]) for word in text] == sorted(int(word[1:]) for word in text) for text in cut)


def test_each_sample_has_its_own_share_of_empty_captions():
    chosen = choose_captions(
        [("a",), ("b",)] * 20,
        CaptionDropoutConfig(p_dropout=0),
        p_empty=torch.tensor([0.0, 1.0] * 20),
        generator=torch.Generator(),
        vocabulary=NONE,
    )
    assert chosen == ["a", ""] * 20


def test_a_value_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="word_dropout=1.5"):
        CaptionDropoutConfig(word_dropout=1.5)


def test_common_words_are_dropped_less_often():
    captions = [(f"name{i} style, tone",) for i in range(16)]
    words = CaptionVocabulary(captions, [str(i) for i in range(16)])
    assert words.counts == {**{f"name{i}": 1 for i in range(16)}, "style": 16, "tone": 16}
    rule = CaptionDropoutConfig(main=1.0, p_dropout=1.0, word_dropout=0.8, rarity_power=0.25)
    chosen = choose_captions(
        captions * 250, rule, p_empty=torch.zeros(4000), generator=torch.Generator(), vocabulary=words
    )
    kept = [sum(word in text for text in chosen) / 4000 for word in ("name", "style", "tone")]
    assert kept == pytest.approx([0.2, 0.6, 0.6], abs=0.03)  # standard error below 0.008; 16 ** -0.25 is a half


def test_variants_of_one_drawing_count_once():
    assert CaptionVocabulary([("a cat", "cat"), ("a cat, red",)], ["cat", "cat"]).counts == {"a": 1, "cat": 1, "red": 1}


def test_invented_words_can_replace_dropped_ones():
    words = CaptionVocabulary([("mechanic", "doctor")], ["one"])
    assert {words.invent(one, other) for one in (0.0, 0.9) for other in (0.0, 0.9)} == {
        "doctor", "docanic", "mechtor", "mechanic",
    }  # fmt: skip
    assert NONE.invent(0.5, 0.5) == ""
    rule = CaptionDropoutConfig(main=1.0, p_dropout=1.0, word_dropout=0.5, invented=0.5)
    chosen = choose_captions(
        [("A, " * 39 + "A",)] * 100, rule, p_empty=torch.zeros(100), generator=torch.Generator(), vocabulary=words
    )
    parts = [part for text in chosen for part in text.split(" ") if part]
    assert sum(part.startswith("A") for part in parts) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(not part.startswith("A") for part in parts) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(part.endswith(",") for part in parts) / len(parts) == pytest.approx(39 / 40, abs=0.02)
