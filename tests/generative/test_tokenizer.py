import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.generative.tokenizer import CaptionRule, Words, choose_captions, train_tokenizer

TEXTS = ["noto emoji, red cat", "twemoji emoji, red dog", "noto emoji, blue dog, café", "twemoji emoji, blue cat"]

NONE = Words([], [])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, vocab_size=560, max_tokens=12)


def test_captions_come_back(tokenizer):
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text


def test_known_words_are_whole_and_unknown_ones_fall_apart(tokenizer):
    assert tokenizer.tokenize("emoji") == ["emoji</w>"]
    pieces = tokenizer.tokenize("zebraß 猫")
    assert len(pieces) > 7 and tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(pieces)[:-1]
    assert "".join(tokenizer.decode(tokenizer("zebraß 猫").input_ids, skip_special_tokens=True).split()) == "zebraß猫"


@pytest.mark.parametrize(("asked", "found"), [(520, 520), (560, None), (0, 514)])
def test_the_vocabulary_is_as_long_as_asked_and_depends_on_the_set_of_captions(asked, found):
    one, two = (train_tokenizer(texts, vocab_size=asked, max_tokens=12) for texts in (TEXTS * 3, reversed(TEXTS)))
    assert one.get_vocab() == two.get_vocab()
    assert sorted(one.get_vocab().values()) == list(range(len(one)))
    assert len(one) == found or 520 < len(one) <= asked  # four captions hold fewer pairs than were asked for


def test_equally_frequent_pairs_are_taken_in_one_order():
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [f"q{letter}" for letter in letters]  # 26 pairs, each once, of which 10 find room
    found = [train_tokenizer(texts, vocab_size=524, max_tokens=8).get_vocab() for _ in range(4)]
    assert all(vocabulary == found[0] for vocabulary in found)
    assert {"qa</w>", "qj</w>"} <= found[0].keys() and "qk</w>" not in found[0]


def test_every_byte_can_stand_in_and_end_a_word():
    tokenizer = train_tokenizer(["a cat"], vocab_size=520, max_tokens=8)
    words = [chr(code) for code in (*range(33, 127), *range(0xA1, 0x180), 0x732B, 0x1F600)]
    for word in words:
        assert tokenizer.unk_token_id not in tokenizer(word).input_ids[1:-1], word


def test_long_captions_are_cut_and_short_ones_padded(tokenizer):
    ids = tokenizer(["cat " * 40, ""], padding="max_length", truncation=True, max_length=12).input_ids
    assert [len(row) for row in ids] == [12, 12] and tokenizer.model_max_length == 12
    assert ids[1][:2] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert set(ids[1][1:]) == {tokenizer.pad_token_id}


def test_it_is_the_same_after_saving(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    saved = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "", "zebra 猫", "cat " * 40]
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    assert saved(texts, **options).input_ids == tokenizer(texts, **options).input_ids
    assert saved.model_max_length == 12


def test_the_shares_of_captions():
    captions = [(f"main {i}", f"one {i}", f"two {i}") for i in range(4000)]
    rule, generator = CaptionRule(main=0.5, p_dropout=0), torch.Generator().manual_seed(0)
    chosen = choose_captions(captions, rule, empty=torch.full((4000,), 0.1), generator=generator, words=NONE)
    assert all(text == "" or text in options for text, options in zip(chosen, captions, strict=True))
    empty = sum(text == "" for text in chosen) / 4000
    main, one = (sum(text.startswith(word) for text in chosen) / 4000 for word in ("main", "one"))
    assert empty == pytest.approx(0.1, abs=0.02)  # standard error 0.005
    assert main == pytest.approx(0.9 * (0.5 + 0.5 / 3), abs=0.03) and one == pytest.approx(0.9 * 0.5 / 3, abs=0.03)


def test_a_choice_is_the_generators_and_all_or_nothing_shares_hold():
    captions = [("a", "b", "c")] * 50

    def choose(seed, main=0.0, drop=0.0):
        generator, rule = torch.Generator().manual_seed(seed), CaptionRule(main=main, p_dropout=0)
        return choose_captions(captions, rule, empty=torch.full((50,), drop), generator=generator, words=NONE)

    assert choose(0) == choose(0) != choose(1)
    assert set(choose(0, drop=1.0)) == {""} and set(choose(0, main=1.0)) == {"a"} and set(choose(0)) == {"a", "b", "c"}


def test_gaps_take_words_and_keep_their_order():
    caption = " ".join(f"w{i}" for i in range(40))
    rule, generator = CaptionRule(main=1.0, p_dropout=0.5, word_dropout=0.25), torch.Generator().manual_seed(0)
    chosen = choose_captions([(caption,)] * 400, rule, empty=torch.zeros(400), generator=generator, words=NONE)
    cut = [text.split() for text in chosen if text != caption]
    assert len(cut) / 400 == pytest.approx(0.5, abs=0.1)
    assert sum(map(len, cut)) / len(cut) / 40 == pytest.approx(0.75, abs=0.05)
    assert all([int(word[1:]) for word in text] == sorted(int(word[1:]) for word in text) for text in cut)


def test_each_sample_has_its_own_share_of_empty_captions():
    chosen = choose_captions(
        [("a",), ("b",)] * 20,
        CaptionRule(p_dropout=0),
        empty=torch.tensor([0.0, 1.0] * 20),
        generator=torch.Generator(),
        words=NONE,
    )
    assert chosen == ["a", ""] * 20


def test_what_is_no_share_is_refused():
    with pytest.raises(ConfigError, match="word_dropout=1.5 is no share"):
        CaptionRule(word_dropout=1.5)


def test_common_words_last_longer():
    captions = [(f"name{i} style, tone",) for i in range(16)]
    words = Words(captions, [str(i) for i in range(16)])
    assert words.counts == {**{f"name{i}": 1 for i in range(16)}, "style": 16, "tone": 16}
    rule = CaptionRule(main=1.0, p_dropout=1.0, word_dropout=0.8, rarity_power=0.25)
    chosen = choose_captions(captions * 250, rule, empty=torch.zeros(4000), generator=torch.Generator(), words=words)
    kept = [sum(word in text for text in chosen) / 4000 for word in ("name", "style", "tone")]
    assert kept == pytest.approx([0.2, 0.6, 0.6], abs=0.03)  # standard error below 0.008; 16 ** -0.25 is a half


def test_variants_of_one_drawing_count_once():
    assert Words([("a cat", "cat"), ("a cat, red",)], ["cat", "cat"]).counts == {"a": 1, "cat": 1, "red": 1}


def test_invented_words_may_stand_in_place_of_lost_ones():
    words = Words([("mechanic", "doctor")], ["one"])
    assert {words.invent(one, other) for one in (0.0, 0.9) for other in (0.0, 0.9)} == {
        "doctor", "docanic", "mechtor", "mechanic",
    }  # fmt: skip
    assert NONE.invent(0.5, 0.5) == ""
    rule = CaptionRule(main=1.0, p_dropout=1.0, word_dropout=0.5, invented=0.5)
    chosen = choose_captions(
        [("A, " * 39 + "A",)] * 100, rule, empty=torch.zeros(100), generator=torch.Generator(), words=words
    )
    parts = [part for text in chosen for part in text.split(" ") if part]
    assert sum(part.startswith("A") for part in parts) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(not part.startswith("A") for part in parts) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(part.endswith(",") for part in parts) / len(parts) == pytest.approx(39 / 40, abs=0.02)
