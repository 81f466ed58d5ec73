"""Bring the outputs of a denoiser's modules into one layout, `[batch, channels, height, width]`.

Tokens are laid out on their grid, and the image is separated from the text. A family's `OutputLayout` states what the
shape of a tensor does not show.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.shapes import FeatureMap


@dataclass
class RowTexts:
    """Where the text of each row is, in networks that join the image with a text of the row's own length.

    The backbone states it before each pass.
    """

    lengths: Sequence[int] = ()
    """Number of text tokens of each row."""
    n_image: int = 0
    """Number of image tokens."""
    start: int | None = None
    """Token at which texts begin, behind the image and its filling; None if the image follows the text instead."""

    def image(self, tokens: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch image ..."]:
        """Return the tokens of the image."""
        if self.start is not None:
            return tokens[:, : self.n_image]
        return torch.stack([row[n : n + self.n_image] for row, n in zip(tokens, self.lengths, strict=True)])

    def with_image(
        self, tokens: Float[Tensor, "batch tokens channels"], image: Float[Tensor, "batch image channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the tokens with those of the image replaced."""
        found = tokens.clone()
        if self.start is not None:
            found[:, : self.n_image] = image
            return found
        for row, new, n in zip(found, image, self.lengths, strict=True):
            row[n : n + self.n_image] = new
        return found

    def text(self, tokens: Float[Tensor, "batch tokens ..."], n_text: int) -> Float[Tensor, "batch text ..."]:
        """Return the tokens of the text, filled up to `n_text` with zeros."""
        found = tokens.new_zeros(len(tokens), n_text, *tokens.shape[2:])
        start = self.start or 0
        for i, n in enumerate(self.lengths):
            found[i, :n] = tokens[i, start : start + n]
        return found

    def others(self, tokens: Float[Tensor, "batch tokens ..."]) -> Float[Tensor, "batch others ..."]:
        """Return the tokens of the image and its filling."""
        return self.image(tokens) if self.start is None else tokens[:, : self.start]


@dataclass(frozen=True, kw_only=True)
class OutputLayout:
    """Where the image is in the outputs of a denoiser. Patterns are regular expressions for whole module paths."""

    size: tuple[int, int]
    """Height and width of the denoiser's input; the grid of tokens is found from it."""
    n_text: int = 0
    """Number of text tokens, which come before the image's in the outputs of `joint` modules; with the registers."""
    row_texts: RowTexts | None = None
    """For networks whose texts differ in length between rows: their lengths, `n_text` being the longest."""
    n_registers: int = 0
    """Number of tokens before the text, and counted with it, that are parameters of the network and no text."""
    joint: str | None = None
    """Modules that output text and image tokens in one sequence."""
    image_first: bool = False
    """Whether the text follows the image in them; for texts of one length, without `row_texts`."""
    filled: str | None = None
    """Modules that output image tokens and their filling, whose number `row_texts` states."""
    image_second: str | None = None
    """Modules that output (text, image); all other tuples begin with the image."""
    text_second: str | None = None
    """Modules whose (image, text) has tokens of the text that are read."""
    text_only: str | None = None
    """Modules whose output is of the text alone; they are not taps."""
    heads: str | None = None
    """Modules whose tokens are split into heads, `[batch, heads, tokens, width]`; heads are concatenated."""
    heads_last: bool = False
    """Whether those modules output `[batch, tokens, heads, width]` instead."""
    joint_attention: str | None = None
    """Attentions in which image and text tokens attend to each other."""
    text_keys_first: bool = False
    """Whether text tokens come before those of the image in them."""
    cross_attention: str | None = None
    """Cross-attentions to a text whose queries and keys are changed between their projection and their comparison."""
    channels_last: str | None = None
    """Modules that output `[batch, 1, height, width, channels]`, the one frame of an image in a network for video."""
    frame_third: str | None = None
    """Modules that output `[batch, channels, 1, height, width]`, with one frame too."""
    channels_first: str | None = None
    """Modules that output `[batch, channels, tokens]`, as the group norm of an attention over maps does."""

    def is_text(self, path: str) -> bool:
        """Return whether the output of a module is of the text alone."""
        return _fits(self.text_only, path)

    def is_joint(self, path: str) -> bool:
        """Return whether a module works on text and image tokens in one sequence."""
        return _fits(self.joint, path)

    def is_filled(self, path: str) -> bool:
        """Return whether a module works on image tokens and their filling."""
        return _fits(self.filled, path)

    def is_joint_attention(self, path: str) -> bool:
        """Return whether a module is an attention of text and image tokens to each other."""
        return _fits(self.joint_attention, path)

    def is_cross_attention(self, path: str) -> bool:
        """Return whether a module is a cross-attention that is read where queries and keys are compared."""
        return _fits(self.cross_attention, path)

    def on_grid(self, tokens: Float[Tensor, "batch tokens channels"]) -> FeatureMap | None:
        """Lay tokens of the image out on the grid that divides the input evenly; None if there is none."""
        grid = _grid(tokens.shape[1], self.size)
        return None if grid is None else tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)

    def image(self, output: Any, path: str) -> FeatureMap | None:
        """Bring a module's output into the layout of feature maps.

        Tokens `[batch, tokens, channels]` are laid out on the grid that divides the input evenly.
        Returns: None if the output holds no image.
        """
        output = _stream(output, self._place(path))
        if output is not None and output.ndim == 5 and _fits(self.channels_last, path):
            return output[:, 0].movedim(-1, 1)
        if output is not None and output.ndim == 5 and _fits(self.frame_third, path):
            return output[:, :, 0]
        if output is None or output.ndim not in (3, 4) or self.is_text(path):
            return None
        if output.ndim == 4 and not _fits(self.heads, path):
            return output
        if output.ndim == 4:
            output = (output if self.heads_last else output.transpose(1, 2)).flatten(2)
        if _fits(self.channels_first, path):
            output = output.transpose(1, 2)
        if _fits(self.joint, path):
            output = output[:, self._own] if self.row_texts is None else self.row_texts.image(output)
        elif self.row_texts is not None and _fits(self.filled, path):
            output = self.row_texts.image(output)
        return self.on_grid(output)

    def with_image(self, output: Any, path: str, image: FeatureMap) -> Any:
        """Return a module's output with another image in the place of that which `image` finds; the rest stays.

        A tensor that occurs in the output more than once (a map that a down block hands on as a skip, too) is replaced
        wherever it occurs.

        Args:
            image: of the shape that `image` returns.
        Returns: None if the output holds the text alone, or an image that is split into heads.
        """
        old = _stream(output, self._place(path))
        if old is None or self.is_text(path) or _fits(self.heads, path):
            return None
        if old.ndim == 5:
            new = image.movedim(1, -1)[:, None] if _fits(self.channels_last, path) else image[:, :, None]
        elif old.ndim == 4:
            new = image
        else:
            turned = _fits(self.channels_first, path)
            new = self._with_tokens(old.transpose(1, 2) if turned else old, path, image.flatten(2).transpose(1, 2))
            new = new.transpose(1, 2) if turned else new
        if new.stride() != old.stride():  # in the layout of the old one: another one would round differently
            new = torch.empty_like(old).copy_(new)
        return _exchange(output, old, new)

    def _with_tokens(self, tokens: Tensor, path: str, image: Tensor) -> Tensor:
        joint = _fits(self.joint, path)
        if self.row_texts is not None and (joint or _fits(self.filled, path)):
            return self.row_texts.with_image(tokens, image)
        if not joint:
            return image
        found = tokens.clone()
        found[:, self._own] = image
        return found

    @property
    def _own(self) -> slice:
        """Tokens of the image in a joint sequence."""
        return slice(0, -self.n_text) if self.image_first else slice(self.n_text, None)

    def _place(self, path: str) -> int:
        """Return the place of the image in a tuple."""
        return 1 if _fits(self.image_second, path) else 0

    def text(self, output: Any, path: str) -> FeatureMap | None:
        """Return the text in a joint module's output as `[batch, channels, text tokens, 1]`, without registers.

        Returns: None if the output does not hold both text and image.
        """
        second, joint = _fits(self.text_second, path), _fits(self.joint, path)
        apart = second or _fits(self.image_second, path)
        tokens = _stream(output, int(second)) if apart or joint else None
        if tokens is None or tokens.ndim != 3:
            return None
        if joint and self.row_texts is not None:
            tokens = self.row_texts.text(tokens, self.n_text)
        own = slice(-self.n_text, None) if self.image_first else slice(0, self.n_text)
        text = tokens if apart else tokens[:, own]
        return text[:, self.n_registers :].transpose(1, 2)[..., None]


def _stream(output: Any, index: int) -> Tensor | None:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[index] if len(output) > index else None
    return output if isinstance(output, Tensor) else None


def _exchange(output: Any, old: Tensor, new: Tensor) -> Any:
    """Put `new` in place of the tensor object `old`, wherever it occurs."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        return type(output)(**{name: _exchange(value, old, new) for name, value in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(_exchange(value, old, new) for value in output)
    return output


def _fits(pattern: str | None, path: str) -> bool:
    return pattern is not None and re.fullmatch(pattern, path) is not None


def _grid(n_tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    height, width = size
    while height >= 1 and width >= 1:
        if height * width == n_tokens:
            return height, width
        if height == width == 1:
            return None
        height, width = -(-height // 2), -(-width // 2)  # strided convolutions round up
    return None
