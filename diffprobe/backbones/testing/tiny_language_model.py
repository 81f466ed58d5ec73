"""Tiny language models with random weights and their tokenizers, for the tiny pipelines of tests."""

from typing import Any

from diffprobe.backbones.testing.tiny_text import WORDS


def tiny_gemma2(*, width: int = 32) -> tuple[Any, Any]:
    """Make a Gemma tokenizer of letters and a few words, and draw a Gemma 2 of two layers from the global generator.

    Args:
        width: of the states.
    Returns: tokenizer and model.
    """
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    pieces, merges = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.-':"], []
    for word in WORDS.split():
        left = word[0]
        for letter in word[1:]:
            merges.append((left, letter))
            left += letter
            pieces.append(left)
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *pieces]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    unique: Any = list(dict.fromkeys(merges))
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=unique, model_max_length=8192, add_bos_token=True)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, Gemma2Model(config)
