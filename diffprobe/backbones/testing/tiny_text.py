"""Tiny CLIP tokenizers and text encoders with random weights, for the tiny pipelines of tests."""

import json
from pathlib import Path
from typing import Any

WORDS = (
    "a an of the photo noto twemoji emoji cat dog red blue green circle square light dark face hand tree sun moon star"
)
"""Words that are one token each for tiny tokenizers."""
_LENGTH = 24
"""Tokens per prompt."""


def tiny_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> Any:
    """Write and load a CLIP tokenizer of letters and a few words.

    Args:
        folder: the tokenizer's folder, created if it does not exist.
        pad: the token that pads short prompts.
    """
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-_'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS.split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=_LENGTH, pad_token=pad
    )


def tiny_clip_text(tokenizer: Any, *, width: int = 32, projection: int | None = None) -> Any:
    """Draw a CLIP text encoder of two layers for a tokenizer from the global generator.

    Args:
        width: of the hidden states.
        projection: width of the pooled embedding; None makes an encoder without one.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    pooled: dict[str, Any] = {} if projection is None else {"projection_dim": projection}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **pooled,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
