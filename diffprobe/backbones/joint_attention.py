"""Joint attention of text and image tokens: the queries and keys that a pass compares.

Families with it: SD3, FLUX, FLUX.2, AuraFlow, Qwen-Image, Lumina 2, Z-Image, HiDream, CogVideoX.

Queries and keys are normalised, and turned by rotary embeddings, between their projections and their comparison. They
are taken from the attention's own call of `scaled_dot_product_attention`, so that whatever happens before is included.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.attended import Attended, Ready, n_heads, text_given
from diffprobe.backbones.layout import OutputLayout, RowTexts


def may_attend_jointly(path: str, module: nn.Module, layout: OutputLayout) -> bool:
    """Return whether a module is an attention in which image and text tokens attend to each other."""
    return layout.is_joint_attention(path) and n_heads(module) is not None


def may_cross_attend_changed(path: str, module: nn.Module, layout: OutputLayout) -> bool:
    """Return whether a module is a cross-attention whose queries and keys are changed after their projection."""
    return layout.is_cross_attention(path) and n_heads(module) is not None


def watch_joint_attention(module: Any, path: str, layout: OutputLayout, ready: Ready) -> list[RemovableHandle]:
    """Hook a joint attention; `ready` is called once per pass, inside it, with the queries of the image's places.

    Keys are those of all tokens. A pass in which the module sees the image alone (the second attention of SD3.5) calls
    nothing. A cross-attention of the layout is read in the same way; its keys are all of the text.
    """
    modes: list[_Recorder] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text, whole = text_given(module, args, kwargs), layout.is_joint(path)
        if text is None and not whole:
            return
        if layout.is_cross_attention(path):
            modes.append(_Recorder(None, 0, layout.text_keys_first, ready))
        elif whole and layout.row_texts is not None:
            modes.append(_Recorder(layout.n_text, 0, True, ready, layout.row_texts))
        else:
            n_text = layout.n_text if text is None else text.shape[1]
            modes.append(_Recorder(n_text, layout.n_registers, layout.text_keys_first, ready))
        modes[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if modes:
            modes.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, always_call=True),  # a pass may be ended inside the attention
    ]


class _Recorder(TorchFunctionMode):
    """Hands the queries and keys of the first attention inside it to `ready`.

    Args:
        n_text: number of text tokens, with the registers; None if queries are all of the image, keys of the text.
        n_registers: number of register tokens, which start the text.
        text_first: whether they come before the tokens of the image.
        rows: where the text of each row ends; its keys are then filled up to `n_text`, and the filling masked.
    """

    def __init__(
        self, n_text: int | None, n_registers: int, text_first: bool, ready: Ready, rows: RowTexts | None = None
    ) -> None:
        super().__init__()
        self._n_text, self._n_registers = n_text, n_registers
        self._text_first, self._ready, self._rows = text_first, ready, rows
        self._done = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and read its queries and keys before if it is the attention."""
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention and not self._done:
            self._done = True
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            q, k = (given[name].transpose(1, 2).flatten(2) for name in ("query", "key"))
            n, total, first = self._n_text, q.shape[1], self._n_registers
            if n is None:
                self._ready(Attended(q, k, _of_places(given.get("attn_mask"), slice(None))))
                return function(*args, **kwargs)
            if self._rows is not None:
                self._ready(_by_rows(q, k, n, self._rows))
                return function(*args, **kwargs)
            text = slice(first, n) if self._text_first else slice(total - n + first, total)
            image = slice(n, total) if self._text_first else slice(0, total - n)
            self._ready(Attended(q[:, image], k, _of_places(given.get("attn_mask"), image), text=text))
        return function(*args, **kwargs)


def _by_rows(q: Tensor, k: Tensor, n_text: int, rows: RowTexts) -> Attended:
    """Bring queries and keys of rows with texts of their own lengths into one order: text, filling, image."""
    keys = torch.cat([rows.text(k, n_text), rows.others(k)], dim=1)
    ends = torch.tensor(list(rows.lengths), device=k.device)
    places = torch.arange(keys.shape[1], device=k.device)
    there = (places < ends[:, None]) | (places >= n_text)
    return Attended(rows.image(q), keys, there, text=slice(0, n_text))


def _of_places(mask: Tensor | None, image: slice) -> Tensor | None:
    """Bring a mask `[batch, 1 or heads, 1 or queries, keys]` to the queries of the image.

    One that is the same for all heads loses their axis, and then one that is the same for all queries theirs; masks of
    other shapes stay as they are.
    """
    if mask is None or mask.ndim != 4:
        return mask
    mask = mask if mask.shape[2] == 1 else mask[:, :, image]
    if mask.shape[1] != 1:
        return mask
    return mask[:, 0, 0] if mask.shape[2] == 1 else mask[:, 0]
