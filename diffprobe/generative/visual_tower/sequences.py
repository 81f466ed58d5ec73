"""Make token sequences of a prompt with an image and a caption, for training a LLaVA model on captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, SampleError

IMAGE = "<image>"
"""Where the visual tokens go in a prompt."""
IGNORED = -100
"""Label of a position that does not count for the loss."""
_SHOWN = 5


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of equal length, padded on the right.

    Attributes:
        input_ids: tokens; one place holder per visual token.
        attention_mask: 1 for tokens, 0 for padding.
        labels: the tokens of captions and their ends; `IGNORED` elsewhere.
    """

    input_ids: Int[Tensor, "row position"]
    attention_mask: Int[Tensor, "row position"]
    labels: Int[Tensor, "row position"]

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on `device`."""
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


class CaptionSequences:
    """Turns captions into sequences: start token, prompt with the image, caption, end token.

    Args:
        tokenizer: of the language model; it needs an end token.
        image_token_id: id of a place holder.
        n_visual: visual tokens per image.
        prompt: text with `<image>` once.
        max_length: largest number of tokens of a sequence, visual ones included.
    Raises: ConfigError for a prompt without exactly one `<image>`, or a tokenizer without an end token.
    """

    def __init__(self, tokenizer: Any, *, image_token_id: int, n_visual: int, prompt: str, max_length: int) -> None:
        require_image(prompt)
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer of the language model has no end token (eos_token).")
        self._tokenizer, self.max_length = tokenizer, max_length
        before, after = prompt.split(IMAGE)
        self._start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        self._before, self._after = self._encode(before), self._encode(after)
        self._image = [image_token_id] * n_visual
        self._end = int(tokenizer.eos_token_id)

    def prompt_ids(self, *, image: bool = True) -> list[int]:
        """Return the tokens before the caption; without `image`, without the place holders."""
        return [*self._start, *self._before, *(self._image if image else ()), *self._after]

    def length(self, caption: str) -> int:
        """Return the number of tokens of the sequence of a caption."""
        return len(self.prompt_ids()) + len(self._encode(caption)) + 1

    def require_fitting(self, captions: Mapping[str, str]) -> None:
        """Check that the sequences of captions are not too long.

        Args:
            captions: key of each sample -> its caption.
        Raises: SampleError naming the samples with their numbers of tokens.
        """
        long = {key: n for key, text in captions.items() if (n := self.length(text)) > self.max_length}
        if not long:
            return
        shown = [f"'{key}': {n} tokens" for key, n in list(long.items())[:_SHOWN]]
        raise SampleError(
            f"{len(long):,} of {len(captions):,} captions are longer than max_length={self.max_length} tokens.",
            *shown, *([f"and {len(long) - _SHOWN:,} more"] if len(long) > _SHOWN else []),
            f"the prompt has {len(self.prompt_ids())} tokens, {len(self._image)} of them visual",
            fix=f"max_length={max(long.values())}, or shorter captions",
        )  # fmt: skip

    def __call__(self, captions: Sequence[str], *, image: bool = True) -> TokenBatch:
        """Return the sequences of captions. Without `image` they have no place holders: text alone."""
        prompt = self.prompt_ids(image=image)
        endings = [[*self._encode(caption), self._end] for caption in captions]
        longest = max(map(len, endings))
        ids = [[*prompt, *ending, *[self._end] * (longest - len(ending))] for ending in endings]
        size = [len(prompt) + len(ending) for ending in endings]
        input_ids, n = torch.tensor(ids), len(prompt) + longest
        mask = (torch.arange(n)[None] < torch.tensor(size)[:, None]).long()
        labelled = (mask == 1) & (torch.arange(n)[None] >= len(prompt))
        return TokenBatch(input_ids, mask, input_ids.masked_fill(~labelled, IGNORED))

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found


def require_image(prompt: str) -> None:
    """Check that a prompt has a place for the visual tokens. Raises: ConfigError."""
    if (n := prompt.count(IMAGE)) != 1:
        raise ConfigError(
            f"prompt='{prompt}' has {IMAGE} {n} times; the visual tokens need exactly one place.",
            fix=f"prompt='{IMAGE}\\n'",
        )
