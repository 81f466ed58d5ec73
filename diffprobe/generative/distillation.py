"""The teacher of a distilled text encoder: a trained sentence encoder and its mean pooling."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.device import exact
from diffprobe.backbones.tokenizer_files import load_tokenizer
from diffprobe.backbones.transformers_model import load_transformer, model_class
from diffprobe.backbones.weight_files import require_files
from diffprobe.core.errors import WeightsMissing


class Teacher:
    """A sentence encoder in transformers' format, for example all-MiniLM-L6-v2 of sentence-transformers.

    An embedding is the mean of the last hidden state over the tokens, normalised to length 1 (Reimers and Gurevych,
    1908.10084, section 3, MEAN strategy).

    Args:
        folder: folder with config.json, safetensors weights and tokenizer.json.
        batch_size: texts per forward pass.
        max_tokens: longer texts are truncated.
        device: where the teacher runs; embeddings are on the CPU.
    Raises: WeightsMissing, WeightsMismatch.
    """

    def __init__(
        self, folder: Path, *, batch_size: int = 256, max_tokens: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        require_files(folder)
        if not (folder / "tokenizer.json").is_file():
            raise WeightsMissing(f"'{folder}' has no tokenizer.json, so its sentence encoder cannot tokenise texts.")
        from transformers import AutoTokenizer

        self.batch_size, self.max_tokens, self.device = batch_size, max_tokens, torch.device(device)
        self._tokenizer: Any = load_tokenizer(AutoTokenizer, folder)
        self._model: Any = load_transformer(model_class(folder), folder, dtype=torch.float32, declared_only=False)
        self._model.eval().to(self.device)

    @cached_property
    def words(self) -> list[str]:
        """ASCII words of at least three letters that are single vocabulary entries, sorted."""
        return sorted(
            word for word in self._tokenizer.get_vocab() if len(word) > 2 and word.isalpha() and word.isascii()
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """Return the embeddings of texts, in the given order; texts of similar length share a batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for start in range(0, len(order), self.batch_size):
            batch = [texts[i] for i in order[start : start + self.batch_size]]
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            with exact(self.device, "float32"):
                states = self._model(**tokens).last_hidden_state.float()
            weights = tokens.attention_mask[..., None].float()
            parts.append(torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]
