from pathlib import Path

import torch

from diffprobe.backbones.testing.tiny_text import tiny_bert, tiny_clip_text, tiny_tokenizer


def test_words_are_one_token_and_other_texts_go_by_letters(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    counts = [len(tokenizer(text).input_ids) - 2 for text in ("red cat", "zebra", "")]
    assert counts == [2, 5, 0]
    assert (tmp_path / "tokenizer" / "vocab.json").is_file()


def test_short_prompts_are_filled_with_the_pad_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, pad="-</w>")
    ids = tokenizer("cat", padding="max_length").input_ids
    assert len(ids) == tokenizer.model_max_length == 24
    assert set(ids[3:]) == {tokenizer.pad_token_id} != {tokenizer.eos_token_id}


def test_a_projection_gives_pooled_embeddings_of_its_width(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = tokenizer("cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        plain, projected = (tiny_clip_text(tokenizer, width=16, projection=p)(tokens) for p in (None, 24))
    assert plain.last_hidden_state.shape == (1, 24, 16)
    assert projected.text_embeds.shape == (1, 24)


def test_a_bert_reads_words_as_one_token_and_letters_between_the_marks_of_a_text() -> None:
    tokenizer, model = tiny_bert(width=16, length=12)
    assert tokenizer.tokenize("Red zeb") == ["red", "z", "##e", "##b"]
    tokens = tokenizer(["red cat"], padding="max_length", max_length=12, return_tensors="pt")
    assert int(tokens.attention_mask.sum()) == 4
    assert model(tokens.input_ids)[0].shape == (1, 12, 16)
