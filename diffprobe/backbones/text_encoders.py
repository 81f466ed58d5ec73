"""Text encoders of backbones, and the cache that encodes each prompt once."""

import html
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Condition
from diffprobe.backbones.part_config import CONFIG, read_part_config
from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import load_transformer
from diffprobe.backbones.weight_files import require_files
from diffprobe.core.errors import ConfigError, RunFailed, WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming

TEXT_CONDITIONS = ("empty", "caption", "prompt", "template", "negative")
"""Conditions of a text-conditioned backbone."""

_CHUNK = 64
_CACHE_BYTES = 256 * 2**20


class PromptCache:
    """A bounded cache of encoded prompts.

    Args:
        encode: turns prompts into rows, by name; called with at most `_CHUNK` prompts that are not cached.
    """

    def __init__(self, encode: Callable[[list[str]], Condition]) -> None:
        self._encode = encode
        self._memory: OrderedDict[str, Condition] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, one row each."""
        found = {prompt: self._memory[prompt] for prompt in prompts if prompt in self._memory}
        for prompt in found:
            self._memory.move_to_end(prompt)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            rows = self._encode(chunk)
            found.update({p: {name: x[i].clone() for name, x in rows.items()} for i, p in enumerate(chunk)})
        self._memory.update({prompt: found[prompt] for prompt in new})
        while len(self._memory) > 1 and len(self._memory) * _n_bytes(next(iter(self._memory.values()))) > _CACHE_BYTES:
            self._memory.popitem(last=False)
        return {name: torch.stack([found[prompt][name] for prompt in prompts]) for name in found[prompts[0]]}

    def seal(self) -> None:
        """Drop the reference to the encoder; from now on only cached prompts are available."""

        def gone(prompts: list[str]) -> Condition:
            raise RunFailed(
                f"the text encoder was freed before '{prompts[0]}' was encoded.", "this is a bug in diffprobe"
            )

        self._encode = gone

    def to(self, device: torch.device) -> None:
        """Move the cached rows."""
        for prompt, rows in self._memory.items():
            self._memory[prompt] = {name: x.to(device) for name, x in rows.items()}


class TextEncoder:
    """A frozen text encoder with its tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        encoder: the text encoder.
        length: tokens of every prompt; shorter ones are padded, longer ones truncated, as in the pipelines.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module, length: int) -> None:
        self.tokenizer, self.encoder, self.length = tokenizer, encoder, length
        self._warned = False

    def tokens(
        self,
        prompts: list[str],
        *,
        padding: Literal["max_length", "longest"] = "max_length",
        length: int | None = None,
        special: bool = True,
    ) -> Any:
        """Return `input_ids` and `attention_mask` on the encoder's device; warn of the first truncated prompt.

        Args:
            length: tokens of every prompt; None takes the length of the encoder.
            special: add the tokens that the tokenizer puts around every text.
            padding: to the length of the encoder, as in the pipelines, or to the longest of the prompts.
        Raises: WeightsMismatch if tokenizer and encoder do not fit.
        """
        name = getattr(self.tokenizer, "name_or_path", "the tokenizer")
        length = self.length if length is None else length
        with naming(name, f"a tokenizer that can encode '{prompts[0][:80]}'"):
            tokens = self.tokenizer(
                prompts,
                padding=padding,
                max_length=length,
                truncation=True,
                add_special_tokens=special,
                return_tensors="pt",
                return_attention_mask=True,
            )
        encoder: Any = self.encoder
        known, largest = encoder.get_input_embeddings().num_embeddings, int(tokens.input_ids.max())
        if largest >= known:
            raise WeightsMismatch(
                f"the tokenizer '{name}' gives token {largest}, its text encoder knows 0..{known - 1}.",
                "the parts come from different checkpoints",
            )
        if not self._warned:
            self._warn_of_truncation(prompts, length)
        return tokens.to(next(self.encoder.parameters()).device)

    def _warn_of_truncation(self, prompts: list[str], length: int) -> None:
        whole = self.tokenizer(prompts, truncation=False, verbose=False).input_ids
        for prompt, ids in zip(prompts, whole, strict=True):
            if len(ids) > length:
                self._warned = True
                warnings.warn(
                    f"a prompt of {len(ids)} tokens is truncated to the {length} of the text encoder: '{prompt}'. "
                    "Further truncated prompts are not reported.",
                    stacklevel=2,
                )
                return


class ClipTextEncoder(TextEncoder):
    """A frozen CLIP text encoder."""

    def __call__(self, prompts: list[str], *, hidden: bool = False) -> Any:
        """Return the transformers output of some prompts; with `hidden` the states of all layers too."""
        tokens = self.tokens(prompts)
        mask = tokens.attention_mask if getattr(self.encoder.config, "use_attention_mask", False) else None
        return self.encoder(tokens.input_ids, attention_mask=mask, output_hidden_states=hidden)

    @torch.no_grad()
    def mean_states(self, prompts: Sequence[str]) -> Float[Tensor, "prompt width"]:
        """Return the last states averaged over the tokens of each prompt, start and padding left out."""
        means = []
        for start in range(0, len(prompts), _CHUNK):
            chunk = list(prompts[start : start + _CHUNK])
            mask = self.tokens(chunk).attention_mask.clone()
            mask[:, 0] = 0
            means.append((self(chunk).last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(means)


class T5TextEncoder(TextEncoder):
    """A frozen T5 encoder."""

    def __call__(
        self, prompts: list[str], *, masked: bool = False
    ) -> tuple[Float[Tensor, "prompt length width"], Int[Tensor, "prompt length"]]:
        """Return the last states, and the mask of tokens other than padding.

        With `masked`, padding is hidden from the encoder; pipelines differ in this.
        """
        tokens = self.tokens(prompts)
        encoder: Any = self.encoder
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0]
        return states.to(encoder.dtype), tokens.attention_mask

    @torch.no_grad()
    def mean_states(self, prompts: Sequence[str]) -> Float[Tensor, "prompt width"]:
        """Return the last states averaged over the tokens of each prompt, padding left out and hidden."""
        means, encoder = [], cast(Any, self.encoder)
        for start in range(0, len(prompts), _CHUNK):
            tokens = self.tokens(list(prompts[start : start + _CHUNK]), padding="longest")
            states, mask = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask
            means.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(means)


def clean_text(prompt: str) -> str:
    """Return a text without HTML entities and repeated spaces, as in pipelines of Kandinsky 5 and Wan without ftfy."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def _n_bytes(rows: Condition) -> int:
    return sum(x.numel() * x.element_size() for x in rows.values())


def clip_class(folder: Path) -> Any:
    """Return the class of the CLIP text encoder in a part's folder. Raises: WeightsMissing, WeightsMismatch."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    architectures = read_part_config(folder / CONFIG).get("architectures") or []
    return CLIPTextModelWithProjection if "CLIPTextModelWithProjection" in architectures else CLIPTextModel


def load_clip_text(
    folder: Path, *, dtype: torch.dtype, encoder: str = "text_encoder", tokenizer: str = "tokenizer"
) -> ClipTextEncoder:
    """Load a CLIP text encoder and its tokenizer from a pipeline folder.

    Args:
        encoder, tokenizer: names of the two parts.
    Raises: WeightsMissing without safetensors weights or a vocabulary; WeightsMismatch if the weights do not fit the
        config.
    """
    from transformers import CLIPTokenizer

    require_files(folder / encoder)
    require_vocabulary(folder, tokenizer)
    model = load_transformer(clip_class(folder / encoder), folder / encoder, dtype=dtype)
    words = load_tokenizer(CLIPTokenizer, folder / tokenizer)
    if words.model_max_length > model.config.max_position_embeddings:
        raise ConfigError(
            f"the tokenizer in '{folder}' gives {words.model_max_length} tokens.",
            f"allowed: {model.config.max_position_embeddings}, the length of the text encoder",
            fix=f"set model_max_length in {tokenizer}/tokenizer_config.json",
        )
    return ClipTextEncoder(words, model, words.model_max_length)


def require_t5_vocabulary(folder: Path, tokenizer: str) -> None:
    """Check that the vocabulary of a T5 tokenizer is there and can be read. Raises: WeightsMissing."""
    require_vocabulary(folder, tokenizer)
    if not (folder / tokenizer / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        # transformers would go on with a vocabulary in which every word is unknown
        raise WeightsMissing(
            f"the vocabulary in '{folder / tokenizer}' is a spiece.model, which needs the package sentencepiece.",
            fix="pip install sentencepiece protobuf",
        )


T5_LENGTH = 512
"""Tokens of the texts that T5 was trained on (Raffel et al. 2020, section 3.1.2)."""


def t5_class(folder: Path) -> Any:
    """Return the class of the T5 or UMT5 encoder in a part's folder. Raises: WeightsMissing, WeightsMismatch."""
    from transformers import T5EncoderModel, UMT5EncoderModel

    return UMT5EncoderModel if read_part_config(folder / CONFIG).get("model_type") == "umt5" else T5EncoderModel


def t5_tokenizer(index: Mapping[str, Any], name: str) -> str:
    """Return the class of the tokenizer of a T5, which for Pile-T5 is that of Llama.

    Args:
        index: the pipeline's `model_index.json`.
        name: of the tokenizer's part.
    """
    entry = index.get(name)
    stated = str(entry[1]) if isinstance(entry, list) and len(entry) > 1 else ""
    return "LlamaTokenizerFast" if stated.startswith("Llama") else "T5TokenizerFast"


def load_t5_text(
    folder: Path,
    *,
    dtype: torch.dtype,
    length: int,
    encoder: str = "text_encoder",
    tokenizer: str = "tokenizer",
    words: str = "T5TokenizerFast",
) -> T5TextEncoder:
    """Load a T5 or UMT5 encoder and its tokenizer from a pipeline folder.

    Args:
        length: tokens of every prompt.
        encoder, tokenizer: names of the two parts.
        words: class of the tokenizer, see `t5_tokenizer`.
    Raises: WeightsMissing without safetensors weights or a vocabulary that can be read; WeightsMismatch if the weights
        do not fit the config.
    """
    import transformers

    require_files(folder / encoder)
    require_t5_vocabulary(folder, tokenizer)
    model = load_transformer(t5_class(folder / encoder), folder / encoder, dtype=dtype)
    return T5TextEncoder(load_tokenizer(getattr(transformers, words), folder / tokenizer), model, length)
