"""Tiny chat models with random weights, and their tokenizers with chat templates, for the tiny pipelines of tests.

All weights are drawn from the global generator; callers seed and restore it.
"""

from typing import Any

from diffprobe.backbones.testing.tiny_text import WORDS

_LAYERS = 31
"""Layers of a language model: pipelines read states after the thirtieth."""
_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ part['text'] }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ part['text'] }}[/INST]{% endif %}{% endfor %}{% endfor %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MISTRAL_TOKENS = (
    "<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]",
    "[IMG_END]",
)  # fmt: skip


def _pieces(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges of a byte-level tokenizer of a few words."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces, merges = [*special, *sorted(ByteLevel.alphabet())], []
    for word in WORDS.split():
        left = "Ġ"
        for letter in word:
            merges.append((left, letter))
            left += letter
            pieces.append(left)
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, list(dict.fromkeys(merges))


def _qwen_tokenizer(template: str | None) -> Any:
    from transformers import AddedToken, Qwen2Tokenizer

    vocabulary, merges = _pieces(_QWEN_TOKENS)
    marks: Any = [AddedToken(token, special=True) for token in _QWEN_TOKENS[1:]]
    pairs: Any = merges
    words = Qwen2Tokenizer(
        vocab=vocabulary, merges=pairs, model_max_length=8192, additional_special_tokens=marks, eos_token="<|im_end|>"
    )
    words.chat_template = template
    return words


def _sizes(width: int, n_tokens: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": n_tokens,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
    }


def tiny_qwen3(*, width: int, layers: int = _LAYERS) -> tuple[Any, Any]:
    """Make a Qwen tokenizer of bytes and a few words, and draw a Qwen 3.

    Args:
        width: of the states.
        layers: number of its layers; by default as many as FLUX.2 reads.
    Returns: tokenizer and model.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = _qwen_tokenizer(_QWEN_TEMPLATE)
    config = Qwen3Config(**_sizes(width, len(words), layers), head_dim=width // 2, tie_word_embeddings=True)
    return words, Qwen3ForCausalLM(config)


def tiny_qwen2_vl(*, width: int) -> tuple[Any, Any]:
    """Make a Qwen tokenizer without a chat template, and draw a Qwen 2.5-VL of two layers.

    Args:
        width: of the states; a multiple of 16.
    Returns: tokenizer and model.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = _qwen_tokenizer(None)
    text = _sizes(width, len(words), 2) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, width // 4 - 2]},
    }
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return words, Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def tiny_llama(*, width: int, layers: int) -> tuple[Any, Any]:
    """Make a tokenizer of bytes and a few words that begins every text with a token, and draw a Llama.

    Args:
        width: of the states.
        layers: number of its layers.
    Returns: tokenizer and model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    start, end = "<|begin_of_text|>", "<|eot_id|>"
    vocabulary, merges = _pieces((start, end))
    pairs: Any = merges
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 0)])
    words = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=start, eos_token=end, model_max_length=8192)
    tokens: Any = {"bos_token_id": vocabulary[start], "eos_token_id": vocabulary[end]}
    return words, LlamaForCausalLM(LlamaConfig(**_sizes(width, len(words), layers), **tokens))


def tiny_mistral3(*, width: int) -> tuple[Any, Any]:
    """Make a tokenizer of bytes and a few words, and draw a Mistral 3 with as many layers as pipelines read.

    The tokenizer is that inside a `PixtralProcessor`, which needs torchvision and changes nothing for texts.

    Args:
        width: of the states.
    Returns: tokenizer and model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    vocabulary, merges = _pieces(_MISTRAL_TOKENS)
    pairs: Any = merges
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokens: Any = list(_MISTRAL_TOKENS[4:])
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=tokens, model_max_length=8192, padding_side="left",
    )  # fmt: skip
    words.chat_template = _MISTRAL_TEMPLATE
    text = _sizes(width, len(words), _LAYERS) | {"model_type": "mistral", "head_dim": width // 2}
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 32, "patch_size": 4,
    }  # fmt: skip
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=vocabulary["[IMG]"], tie_word_embeddings=False
    )
    return words, Mistral3ForConditionalGeneration(config)
