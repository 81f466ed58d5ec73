"""Text encoders that are language models (Gemma 2): states of every token, with an instruction before the prompt."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import load_transformer
from diffprobe.backbones.weight_files import require_files


class LanguageModelEncoder(TextEncoder):
    """A frozen language model whose states are the condition. Padding follows a prompt, and is hidden from it."""

    def __call__(
        self, prompts: list[str], *, instruction: str = ""
    ) -> tuple[Float[Tensor, "prompt length width"], Int[Tensor, "prompt length"]]:
        """Return the last states, and the mask of tokens other than padding.

        With an instruction, which is put before each prompt, these are the states of the first token and of the last
        `length` - 1 ones: those of the prompt, which have seen the instruction (Xie et al., 2410.10629, section 3.1).
        """
        ahead = len(self.tokenizer.encode(instruction)) - 2 if instruction else 0
        tokens = self.tokens([instruction + prompt for prompt in prompts], length=self.length + ahead)
        states = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        kept = [0, *range(-self.length + 1, 0)]
        return states[:, kept], tokens.attention_mask[:, kept]


def load_gemma2(folder: Path, *, dtype: torch.dtype, length: int) -> LanguageModelEncoder:
    """Load a Gemma 2 and its tokenizer, the parts `text_encoder` and `tokenizer` of a pipeline folder.

    Args:
        length: tokens of every prompt.
    Raises: WeightsMissing without safetensors weights or a vocabulary that can be read; WeightsMismatch if the weights
        do not fit the config.
    """
    from transformers import Gemma2Model, GemmaTokenizerFast  # type: ignore[attr-defined]  # made on demand

    require_files(folder / "text_encoder")
    require_vocabulary(folder, "tokenizer")
    model = load_transformer(Gemma2Model, folder / "text_encoder", dtype=dtype)
    words = load_tokenizer(GemmaTokenizerFast, folder / "tokenizer")
    words.padding_side = "right"
    return LanguageModelEncoder(words, model, length)
