"""Readouts of a tap other than the image (attention maps and texts), and the hooks that read a tap of any kind.

A readout is named behind a module's path:

- `PATH/probs`: of a cross-attention, how much each place of the image attends to each text token, averaged over heads.
- `PATH/logits`: the same before the softmax and before the mask of padded tokens: q k / sqrt(d), averaged over heads.
- `PATH/text`: of a joint block, its text tokens.
- `PATH/modulated`: of a transformer block with AdaLN, its image tokens normalised and modulated (`modulation.py`).

All are feature maps: attention `[batch, text tokens, height, width]`, text `[batch, channels, text tokens, 1]`.
Attention is computed in float32 from the outputs of `to_q` and `to_k`. Neither is run again, and the network's own
attention (fused, in its own precision) is not changed.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.modulation import MODULATED, watch_modulated
from diffprobe.core.errors import RunFailed
from diffprobe.core.shapes import FeatureMap

ATTENTION = ("probs", "logits")
"""Readouts of cross-attentions."""
READOUTS = (*ATTENTION, "text", MODULATED)
"""All readouts."""

Ready = Callable[[Tensor, Tensor, Tensor | None], None]
"""Takes queries [batch, places, width], keys [batch, text tokens, width] and the mask of one cross-attention."""


def split_tap(tap: str) -> tuple[str, str | None]:
    """Split a tap into its module's path and its readout, None for the module's own output.

    >>> split_tap("up_blocks.1.attentions.0.transformer_blocks.0.attn2/probs")
    ('up_blocks.1.attentions.0.transformer_blocks.0.attn2', 'probs')
    """
    path, slash, readout = tap.partition("/")
    return path, readout if slash else None


def hooked_modules(tap: str) -> tuple[str, ...]:
    """Return the modules that are hooked to read a tap; compiled regions may not contain them."""
    path, readout = split_tap(tap)
    inner = {MODULATED: [f"{path}.{norm}.linear" for norm in ("norm1", "norm")]}
    return (path, f"{path}.to_q", f"{path}.to_k") if readout in ATTENTION else (path, *inner.get(readout or "", []))


def watch(
    network: nn.Module, tap: str, layout: OutputLayout, give: Callable[[FeatureMap], None]
) -> list[RemovableHandle]:
    """Hook one tap of a network; `give` is called with its feature map inside the pass.

    Raises (in the pass): RunFailed if the module does not output what the trace found.
    """
    path, readout = split_tap(tap)
    module: Any = network.get_submodule(path)

    def read(module: nn.Module, args: Any, output: Any) -> None:
        give(_there(layout.text(output, path) if readout == "text" else layout.image(output, path), tap))

    def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        scores = attention(q, k, None if readout == "logits" else mask, heads=module.heads, probs=readout == "probs")
        give(_there(layout.image(scores, f"{path}.to_q"), tap))

    if readout == MODULATED:
        return watch_modulated(module, lambda output: layout.image(output, path), lambda x: give(_there(x, tap)))
    return watch_attention(module, attend) if readout in ATTENTION else [module.register_forward_hook(read)]


def _there(found: FeatureMap | None, tap: str) -> FeatureMap:
    if found is None:
        raise RunFailed(f"tap '{tap}' gave no feature map.", "this is a bug in diffprobe: the trace found one")
    return found


def may_attend(module: nn.Module) -> bool:
    """Return whether a module is an attention that can be read: plain queries and keys.

    Joint attentions have further projections for the text (`add_k_proj`). Where queries or keys are normalised after
    the projection, its output is not what is compared.
    """
    plain = all(isinstance(getattr(module, name, None), nn.Linear) for name in ("to_q", "to_k"))
    changed = any(getattr(module, name, None) is not None for name in ("add_k_proj", "norm_q", "norm_k"))
    return plain and not changed and isinstance(getattr(module, "heads", None), int)


def watch_attention(module: Any, ready: Ready) -> list[RemovableHandle]:
    """Hook an attention; `ready` is called once per pass, when queries are there and keys of a text are too."""
    seen: dict[str, Any] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.clear()
        given = dict(zip(("hidden_states", "encoder_hidden_states", "attention_mask"), args, strict=False)) | kwargs
        if given.get("encoder_hidden_states") is not None:
            seen["mask"] = given.get("attention_mask")

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if "mask" not in seen:
                return  # attention of the image to itself
            seen[name] = output
            if len(seen) == 3:
                q, k, mask = seen["q"], seen["k"], seen["mask"]
                seen.clear()
                ready(q, k, mask)

        return hook

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.to_q.register_forward_hook(note("q")),
        module.to_k.register_forward_hook(note("k")),
    ]


def attention(
    q: Float[Tensor, "batch places width"],
    k: Float[Tensor, "batch tokens width"],
    mask: Shaped[Tensor, "batch ..."] | None,
    *,
    heads: int,
    probs: bool,
) -> Float[Tensor, "batch places tokens"]:
    """Compare queries and keys, averaged over heads.

    Args:
        q: queries of all heads.
        k: keys of all heads.
        mask: added to the scores, or boolean with True for what may be attended to; its last axis is the tokens.
        heads: number of heads.
        probs: return softmax(q k / sqrt(d) + mask) instead of q k / sqrt(d) + mask.
    Returns: float32.
    Source: Vaswani et al., NeurIPS 2017, equation 1.
    """
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    bias = _bias(mask, len(q), k.shape[2])
    total = torch.zeros((), device=q.device)
    for head in range(heads):  # one at a time: all together would be `heads` times what is kept
        scores = q[:, head] @ k[:, head].transpose(1, 2) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        total = total + (scores.softmax(-1) if probs else scores)
    return total / heads


def _bias(mask: Tensor | None, batch: int, n_tokens: int) -> Tensor | None:
    """Bring a mask to something that can be added to [batch, places, tokens]. Raises: RunFailed."""
    if mask is None:
        return None
    if mask.shape[-1] != n_tokens or mask.shape[0] != batch or mask.ndim not in (2, 3):
        raise RunFailed(
            f"an attention mask of shape {tuple(mask.shape)} does not fit {batch} rows of {n_tokens} tokens.",
            "this is a bug in diffprobe: it does not handle the mask of this network",
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.float() if mask.ndim == 3 else mask.float()[:, None]
