import pytest

from diffprobe.generative.tokenizer import train_tokenizer

TEXTS = ["noto emoji, red cat", "twemoji emoji, red dog", "noto emoji, blue dog, café", "twemoji emoji, blue cat"]


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
