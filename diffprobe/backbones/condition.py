"""What a text-conditioned backbone is told. Owns the prompt encoder and its memory: a prompt is encoded once."""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.quiet import quiet_libraries
from diffprobe.backbones.weights import require_files
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

_CHUNK = 64
_CACHE_BYTES = 256 * 2**20


class PromptEncoder:
    """A frozen CLIP text encoder with its tokenizer and a bounded memory of prompts.

    Args:
        tokenizer: a transformers tokenizer with a finite `model_max_length`.
        encoder: the text encoder; its first output, one row a token, is what the denoiser attends to.
    """

    def __init__(self, tokenizer: Any, encoder: nn.Module) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._warned = False

    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens width"]:
        """Encode prompts, each one only if it is not remembered.

        Longer prompts than the encoder takes are cut at its length, as the pipelines do; the first one is warned of.
        """
        found = {prompt: self._memory[prompt] for prompt in prompts if prompt in self._memory}
        for prompt in found:
            self._memory.move_to_end(prompt)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            found.update(zip(chunk, self._encode(chunk), strict=True))
        self._memory.update({prompt: found[prompt] for prompt in new})
        while len(self._memory) > 1 and len(self._memory) * _n_bytes(next(iter(self._memory.values()))) > _CACHE_BYTES:
            self._memory.popitem(last=False)
        return torch.stack([found[prompt] for prompt in prompts])

    def to(self, device: torch.device) -> None:
        """Move the encoder; what it remembers moves along."""
        self.encoder.to(device)
        self._memory = OrderedDict((prompt, value.to(device)) for prompt, value in self._memory.items())

    def _encode(self, prompts: list[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        if not self._warned:
            self._warn_of_cut(prompts, length)
        device = next(self.encoder.parameters()).device
        mask = tokens.attention_mask.to(device) if getattr(self.encoder.config, "use_attention_mask", False) else None
        return self.encoder(tokens.input_ids.to(device), attention_mask=mask)[0]

    def _warn_of_cut(self, prompts: list[str], length: int) -> None:
        whole = self.tokenizer(prompts, truncation=False, verbose=False).input_ids
        for prompt, ids in zip(prompts, whole, strict=True):
            if len(ids) > length:
                self._warned = True
                warnings.warn(
                    f"a prompt of {len(ids)} tokens is cut to the {length} that the text encoder takes: '{prompt}'. "
                    "Further ones are cut without a word.",
                    stacklevel=2,
                )
                return


def _n_bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def require_vocabulary(folder: Path) -> None:
    """Check that a pipeline folder has the words of its tokenizer; transformers would make up an empty vocabulary.

    Raises: WeightsMissing.
    """
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise WeightsMissing(
            f"checkpoint '{folder}' has no vocabulary (tokenizer/tokenizer.json or tokenizer/vocab.json).",
            fix="save it again with save_pretrained(FOLDER), or complete the download: hf download OWNER/NAME",
        )


def load_prompt_encoder(folder: Path, *, dtype: torch.dtype) -> PromptEncoder:
    """Load `text_encoder` and `tokenizer` of a pipeline folder.

    Raises: WeightsMissing without safetensors weights or a vocabulary; WeightsMismatch if the weights do not fit the
        config.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    require_files(folder / "text_encoder")
    require_vocabulary(folder)
    with quiet_libraries():
        made: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    encoder, report = made
    if report["missing_keys"] or report["mismatched_keys"]:
        faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise WeightsMismatch(
            f"the weights in '{folder / 'text_encoder'}' do not fit its config.", f"missing: {', '.join(faults[:5])}"
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    if tokenizer.model_max_length > encoder.config.max_position_embeddings:
        raise ConfigError(
            f"the tokenizer in '{folder}' gives {tokenizer.model_max_length} tokens.",
            f"allowed: {encoder.config.max_position_embeddings}, the length of the text encoder",
            fix="set model_max_length in tokenizer/tokenizer_config.json",
        )
    return PromptEncoder(tokenizer, encoder.eval().requires_grad_(False))
