from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffprobe.backbones.testing.tiny_chat_model import tiny_llama, tiny_mistral3, tiny_qwen2_vl, tiny_qwen3


@pytest.mark.parametrize(("make", "layers"), [(tiny_mistral3, 31), (tiny_qwen3, 31), (tiny_qwen2_vl, 2)])
@torch.no_grad()
def test_a_text_goes_through_the_model(make: Callable[..., tuple[Any, Any]], layers: int) -> None:
    words, model = make(width=16)
    tokens = words(["red cat", "a"], return_tensors="pt", padding=True)
    output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    assert len(output.hidden_states) == layers + 1
    assert output.hidden_states[-1].shape == (*tokens.input_ids.shape, 16)
    assert words.decode(words("red cat").input_ids).strip() == "red cat"


def test_a_text_of_llama_begins_with_a_token_and_has_none_for_padding() -> None:
    words, model = tiny_llama(width=16, layers=3)
    assert words("cat").input_ids[0] == words.bos_token_id and words.pad_token is None
    words.pad_token = words.eos_token  # as its pipeline does
    tokens = words(["red cat", "a"], return_tensors="pt", padding=True)
    assert tokens.attention_mask[1, 0] == 1 and tokens.attention_mask[1, -1] == 0
    output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    assert len(output.hidden_states) == 4 and output.hidden_states[-1].shape == (*tokens.input_ids.shape, 16)


@pytest.mark.parametrize("make", [tiny_mistral3, tiny_qwen3])
def test_the_marks_of_a_conversation_are_tokens(make: Callable[..., tuple[Any, Any]]) -> None:
    words, _ = make(width=16)
    content: Any = [{"type": "text", "text": "cat"}] if make is tiny_mistral3 else "cat"
    text = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    mark = "[INST]" if make is tiny_mistral3 else "<|im_start|>"
    assert mark in text and words.convert_tokens_to_ids(mark) in words(text).input_ids
