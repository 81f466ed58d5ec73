"""Tiny tokenizers and text encoders of CLIP and BERT, and whole CLIPs, with random weights, for the tests."""

import json
from pathlib import Path
from typing import Any

WORDS = (
    "a an of the photo noto twemoji emoji cat dog red blue green circle square light dark face hand tree sun moon star"
)
"""Words that are one token each for tiny tokenizers."""
_LENGTH = 24
"""Tokens per prompt."""


def tiny_tokenizer(folder: Path, *, pad: str = "<|endoftext|>", length: int | None = None) -> Any:
    """Write and load a CLIP tokenizer of letters and a few words.

    Args:
        folder: the tokenizer's folder, created if it does not exist.
        pad: the token that pads short prompts.
        length: tokens per prompt; None: 24.
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
    most = _LENGTH if length is None else length
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=most, pad_token=pad)


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


def tiny_bert(*, width: int = 32, length: int = _LENGTH) -> tuple[Any, Any]:
    """Make a BERT tokenizer of letters and a few words, and draw a BERT of two layers from the global generator.

    Args:
        width: of the states.
        length: most tokens of a text.
    Returns: tokenizer and model.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-_'"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *letters, *(f"##{x}" for x in letters)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=length)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, BertModel(config)


def tiny_clip(folder: Path, *, size: int = 16, width: int = 32) -> None:
    """Write a CLIP model with random weights, its tokenizer and its image processor, in transformers' format.

    Args:
        folder: created if it does not exist.
        size: side of its images in pixels.
        width: of the hidden states and embeddings.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    tokenizer = tiny_tokenizer(folder)
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, image_size=size,
        patch_size=size // 4, projection_dim=width,
    )  # fmt: skip
    text = tiny_clip_text(tokenizer, width=width).config
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width)
    model = CLIPModel(config)
    with torch.no_grad():  # images that differ little would all have one class
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.v_proj.weight.mul_(30)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processing = {
        "do_resize": True, "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processing), encoding="utf-8")
