"""Text encoders that are chat models (Mistral 3, Qwen 3, Qwen 2.5-VL): states of several layers, behind a template.

Only the language model is read, and of it only the layers up to the deepest state. A chat template is Jinja, which
transformers renders in its sandbox.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.part_config import CONFIG, positive, read_part_config
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES, load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import LanguageModel, load_transformer, match_transformer
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import digest_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming, require_regular_file
from diffprobe.core.json_file import read_json_object

_TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files with a tokenizer's chat template, in the order of transformers; else it is in tokenizer_config.json."""
_MAX_TEMPLATE = 2**20
"""Largest chat template that is read, in bytes; published ones have less than 10 kB."""


@dataclass(frozen=True)
class _Kind:
    """A type of language model: its class in transformers, and the key of its config inside that of the whole."""

    name: str
    key: str | None = None


_KINDS = {
    "llama": _Kind("LlamaModel"),
    "mistral3": _Kind("MistralModel", "text_config"),
    "qwen3": _Kind("Qwen3Model"),
    "qwen2_5_vl": _Kind("Qwen2_5_VLTextModel", "text_config"),
}
"""Type of a model in its config -> its language model."""


class ChatEncoder(TextEncoder):
    """A frozen language model, of which the states of some layers are the condition.

    Args:
        layers: whose input is kept, counted from 0; the number of layers stands for the normalised output.
        template: chat template in Jinja; empty for models that get plain text.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module, length: int, layers: Sequence[int], template: str) -> None:
        super().__init__(tokenizer, encoder, length)
        self._layers, self._template = tuple(layers), template

    def render(self, conversation: Sequence[Mapping[str, Any]], **settings: Any) -> str:
        """Return the text of a conversation. Raises: WeightsMismatch for a template that cannot be rendered.

        Args:
            conversation: messages with `role` and `content`.
            settings: variables of the template.
        """
        with naming(self.tokenizer.name_or_path, "a tokenizer whose chat template can be rendered"):
            text: str = self.tokenizer.apply_chat_template(
                list(conversation), chat_template=self._template, tokenize=False, **settings
            )
        return text

    def states(self, texts: list[str], *, special: bool = True) -> Float[Tensor, "prompt length width"]:
        """Return the states of texts: those of several layers side by side, padded to the length of the encoder.

        Args:
            special: see `TextEncoder.tokens`.
        """
        tokens = self.tokens(texts, special=special)
        found = self.hidden(tokens)
        return torch.cat([found[layer] for layer in self._layers], dim=-1)

    def hidden(self, tokens: Any) -> tuple[Float[Tensor, "prompt tokens hidden"], ...]:
        """Return the states before each layer, and the normalised output of the last."""
        output = self.encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, use_cache=False
        )
        states: tuple[Tensor, ...] = output.hidden_states
        return states


def read_chat_template(folder: Path) -> str:
    """Return the chat template of a tokenizer's folder. Raises: WeightsMissing without one; WeightsMismatch."""
    for name in (*_TEMPLATES, "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        if require_regular_file(path, error=WeightsMismatch) > _MAX_TEMPLATE and name in _TEMPLATES:
            raise WeightsMismatch(f"'{path}' is larger than a chat template.", f"allowed: {_MAX_TEMPLATE:,} bytes")
        if path.suffix == ".jinja":
            with naming(path, "text in Unicode"):
                return path.read_text(encoding="utf-8")
        found = read_json_object(path, error=WeightsMismatch, max_bytes=4 * _MAX_TEMPLATE).get("chat_template")
        if isinstance(found, str):
            return found
    raise WeightsMissing(
        f"the tokenizer in '{folder}' has no chat template.",
        f"looked for: {', '.join(_TEMPLATES)}, and chat_template in tokenizer_config.json",
    )


def chat_width(folder: Path) -> int:
    """Return the width of a language model's states by its config. Raises: WeightsMissing, WeightsMismatch."""
    path = folder / CONFIG
    settings = _inner(path, None)[1].settings(read_part_config(path))
    return positive(settings, "hidden_size", 0, where=path)


def chat_layers(folder: Path) -> int:
    """Return the number of layers of a language model by its config. Raises: WeightsMissing, WeightsMismatch."""
    path = folder / CONFIG
    return _n_layers(path, _inner(path, None)[1])


def _inner(path: Path, layers: int | None) -> tuple[str, LanguageModel]:
    """Return the class of the language model of a config, and where it is. Raises: WeightsMismatch."""
    name = read_part_config(path).get("model_type")
    kind = _KINDS.get(str(name))
    if kind is None:
        raise WeightsMismatch(f"'{path}': model_type is {str(name)[:80]}.", f"allowed: {', '.join(sorted(_KINDS))}")
    return kind.name, LanguageModel(kind.key, layers)


def load_chat_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    length: int,
    layers: Sequence[int] = (),
    template: bool = True,
    encoder: str = "text_encoder",
    tokenizer: str = "tokenizer",
) -> ChatEncoder:
    """Load a language model and its tokenizer from a pipeline folder.

    Args:
        length: tokens of every text.
        layers: see `ChatEncoder`; none loads all layers.
        template: whether the tokenizer needs a chat template.
        encoder, tokenizer: names of the two parts.
    Raises: WeightsMissing without safetensors weights, a vocabulary or a template; WeightsMismatch if the model is
        another one, or its weights do not fit the config.
    """
    import transformers
    from transformers import AutoTokenizer

    part = folder / encoder
    require_files(part)
    require_vocabulary(folder, tokenizer)
    deepest = max(layers, default=None)
    name, inner = _inner(part / CONFIG, deepest)
    n_layers = _n_layers(part / CONFIG, inner)
    if deepest is not None and deepest > n_layers:
        raise WeightsMismatch(
            f"the text encoder in '{part}' has {n_layers} layers; this family reads its states after {deepest}.",
            "the parts come from different checkpoints",
        )
    kind = getattr(transformers, name)
    model = load_transformer(kind, part, dtype=dtype, declared_only=False, inner=inner)
    if deepest is not None and n_layers > deepest:
        model.norm = nn.Identity()  # the deepest state is the input of a layer that was not loaded
    words = load_tokenizer(AutoTokenizer, folder / tokenizer)
    text = read_chat_template(folder / tokenizer) if template else ""
    return ChatEncoder(words, model, length, layers, text)


def _n_layers(path: Path, inner: LanguageModel) -> int:
    whole = LanguageModel(inner.key).settings(read_part_config(path))
    return positive(whole, "num_hidden_layers", 0, where=path)


def match_chat_model(folder: Path) -> Any:
    """Compare the language model of a part with the headers of its weights.

    Returns: the whole language model on the meta device.
    Raises: WeightsMissing, WeightsMismatch.
    """
    import transformers

    name, inner = _inner(folder / CONFIG, None)
    return match_transformer(getattr(transformers, name), folder, inner=inner)


def is_chat_model(folder: Path) -> bool:
    """Return whether a part is one that `load_chat_model` reads. Raises: WeightsMissing, WeightsMismatch."""
    return read_part_config(folder / CONFIG).get("model_type") in _KINDS


def digest_chat_tokenizer(folder: Path) -> str:
    """Digest the files that fix the tokens of a text, with the chat template."""
    return digest_files([folder / name for name in (*TOKENIZER_FILES, *_TEMPLATES)])
