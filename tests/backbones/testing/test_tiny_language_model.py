from pathlib import Path

import torch

from diffprobe.backbones.testing.tiny_language_model import tiny_gemma2


def test_a_text_begins_with_a_token_of_its_own_and_words_are_one_token(tmp_path: Path) -> None:
    from transformers import GemmaTokenizerFast

    made, model = tiny_gemma2(width=16)
    made.save_pretrained(tmp_path)
    tokenizer = GemmaTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert tokenizer.tokenize("red zebra") == ["red", "▁", "z", "e", "b", "r", "a"]
    assert model(torch.tensor([tokenizer("red cat").input_ids]))[0].shape == (1, 4, 16)
