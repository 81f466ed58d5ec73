"""Readouts of an attention's parts: queries, keys and values as it compares them, and the output of each head.

- `PATH/q`, `PATH/k`, `PATH/v`: after normalisation and rotary embeddings, unlike the projections `PATH.to_q` and so on.
- `PATH/heads`: softmax(q k / sqrt(d)) v of each head, before the projection that mixes heads.

All are taken from the attention's own call of `scaled_dot_product_attention` (Vaswani et al., NeurIPS 2017, equation
1), with the heads side by side in one width: channels `h * d` to `(h + 1) * d - 1` are those of head `h` of width `d`.
Queries and outputs are of the image's places. Keys and values are those of the tokens that are attended to: in a
self-attention and in a joint attention the image's places, in a cross-attention the text tokens. An attention that is
computed in another way (the linear attention of Sana) has none of these, and one that appends keys of a text to those
of the image (Kandinsky 2.2) has no `/k` and `/v`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.attended import n_heads, text_given
from diffprobe.backbones.layout import OutputLayout
from diffprobe.core.shapes import FeatureMap

PARTS = ("q", "k", "v", "heads")
"""Names of the readouts."""


ImageTokens = Callable[[Tensor], Tensor]
"""(tokens of image and text, [batch, tokens, width]) -> those of the image."""


@dataclass(frozen=True)
class AttentionPart:
    """One part of an attention.

    Attributes:
        tokens: all heads in one width.
        is_text: whether the tokens are those of the text.
        heads: number of heads of `tokens`.
    """

    tokens: Float[Tensor, "batch tokens width"]
    is_text: bool
    heads: int

    def as_map(self, layout: OutputLayout) -> FeatureMap | None:
        """Lay out: the image on its grid, a text as [batch, width, text tokens, 1]; None for places without a grid."""
        return self.tokens.transpose(1, 2)[..., None] if self.is_text else layout.on_grid(self.tokens)


def may_have_parts(module: nn.Module) -> bool:
    """Return whether a module can be an attention whose parts are read; whether it is one, a pass shows."""
    return n_heads(module) is not None


def watch_parts(
    module: nn.Module,
    path: str,
    layout: OutputLayout,
    parts: tuple[str, ...],
    give: Callable[[str, AttentionPart], None],
) -> list[RemovableHandle]:
    """Hook an attention; `give` is called inside the pass with each of `parts`, a part of PARTS, that it has."""
    recorders: list[_Recorder] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = text_given(module, args, kwargs)
        image: ImageTokens = lambda tokens: tokens  # noqa: E731
        is_cross, is_mixed = False, False
        if layout.is_joint_attention(path) and (text is not None or layout.is_joint(path)):
            if layout.row_texts is not None:
                image = layout.row_texts.image
            else:
                n_text = layout.n_text if text is None else text.shape[1]
                part = slice(n_text, None) if layout.text_keys_first else slice(0, -n_text if n_text else None)
                image = lambda tokens: tokens[:, part]  # noqa: E731
        elif layout.row_texts is not None and layout.is_filled(path):
            image = layout.row_texts.image
        elif text is not None:
            is_mixed = getattr(module, "add_k_proj", None) is not None
            is_cross = not is_mixed
        recorders.append(_Recorder(image, is_cross, is_mixed, parts, give))
        recorders[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if recorders:
            recorders.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, always_call=True),  # a pass may be ended inside the attention
    ]


class _Recorder(TorchFunctionMode):
    """Hands the parts of the first attention inside it to `give`.

    Args:
        image: takes the tokens of the image out of all.
        is_cross: whether keys are of a text.
        is_mixed: whether keys are of a text and the image, in an order that no layout states.
        parts: the parts that are read.
    """

    def __init__(
        self,
        image: ImageTokens,
        is_cross: bool,
        is_mixed: bool,
        parts: tuple[str, ...],
        give: Callable[[str, AttentionPart], None],
    ) -> None:
        super().__init__()
        self._image, self._is_cross, self._is_mixed, self._parts, self._give = image, is_cross, is_mixed, parts, give
        self._done = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; if it is the attention, read what it is given before and what it returns after."""
        kwargs = kwargs or {}
        if function is not torch.nn.functional.scaled_dot_product_attention or self._done:
            return function(*args, **kwargs)
        self._done = True
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        q, k, v = given["query"], given["key"], given["value"]
        self._read("q", q)
        if not self._is_mixed:
            self._read("k", k, is_text=self._is_cross)
            self._read("v", v, is_text=self._is_cross)
        output = function(*args, **kwargs)
        self._read("heads", output)
        return output

    def _read(self, part: str, x: Float[Tensor, "batch heads tokens dim"], *, is_text: bool = False) -> None:
        if part in self._parts:
            tokens = x.transpose(1, 2).flatten(2)
            self._give(part, AttentionPart(tokens if is_text else self._image(tokens), is_text, x.shape[1]))
