"""Readouts of a tap other than the image (attention maps and texts), and the hooks that read a tap of any kind.

A readout is named behind a module's path:

- `PATH/probs`: of a cross-attention or a joint attention, how much each place of the image attends to each text token,
  averaged over heads. In a joint attention the rest of the attention is to the image.
- `PATH/logits`: the same before the softmax and before the mask of padded tokens: q k / sqrt(d), averaged over heads.
- `PATH/text`: of a joint block, its text tokens.
- `PATH/modulated`: of a transformer block with AdaLN, its image tokens normalised and modulated (`modulation.py`).
- `PATH/q`, `PATH/k`, `PATH/v`, `PATH/heads`: of an attention, what it compares, and the output of each head
  (`attention_parts.py`).

All are feature maps: attention `[batch, text tokens, height, width]`, text `[batch, channels, text tokens, 1]`.
Attention is computed in float32 from the queries and keys of the pass: the outputs of `to_q` and `to_k`, or in a joint
attention (`joint_attention.py`) what the network compares. Neither is run again, and the network's own attention
(fused, in its own precision) is not changed.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.attended import Attended, Ready, n_heads
from diffprobe.backbones.attention_parts import PARTS, AttentionPart, watch_parts
from diffprobe.backbones.joint_attention import (
    may_attend_jointly,
    may_cross_attend_changed,
    watch_joint_attention,
)
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.modulation import MODULATED, MODULATION_LAYERS, watch_modulated
from diffprobe.core.errors import RunFailed
from diffprobe.core.shapes import FeatureMap

ATTENTION = ("probs", "logits")
"""Readouts of attentions to a text."""
READOUTS = (*ATTENTION, "text", MODULATED, *PARTS)
"""All readouts."""


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
    inner = {MODULATED: [f"{path}.{layer}" for layer in MODULATION_LAYERS]}
    in_attention = readout in (*ATTENTION, *PARTS)
    return (path, f"{path}.to_q", f"{path}.to_k") if in_attention else (path, *inner.get(readout or "", []))


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

    def attend(found: Attended) -> None:
        heads = n_heads(module) or 1
        give(_there(layout.on_grid(found.mean_over_heads(heads, probs=readout == "probs")), tap))

    def part(name: str, found: AttentionPart) -> None:
        give(_there(found.as_map(layout), tap))

    if readout in PARTS:
        return watch_parts(module, path, layout, (readout,), part)
    if readout == MODULATED:
        return watch_modulated(module, lambda output: layout.image(output, path), lambda x: give(_there(x, tap)))
    if readout in ATTENTION:
        return watch_attention(module, path, layout, attend)
    return [module.register_forward_hook(read)]


def _there(found: FeatureMap | None, tap: str) -> FeatureMap:
    if found is None:
        raise RunFailed(f"tap '{tap}' gave no feature map.", "this is a bug in diffprobe: the trace found one")
    return found


def may_attend(module: nn.Module, path: str, layout: OutputLayout) -> bool:
    """Return whether a module is an attention of the image to a text that can be read, cross or joint."""
    changed = may_cross_attend_changed(path, module, layout)
    return may_attend_jointly(path, module, layout) or changed or may_cross_attend(module)


def may_cross_attend(module: nn.Module) -> bool:
    """Return whether a module is a cross-attention that can be read: plain queries and keys.

    Where queries or keys are normalised after the projection, its output is not what is compared.
    """
    plain = all(isinstance(getattr(module, name, None), nn.Linear) for name in ("to_q", "to_k"))
    changed = any(getattr(module, name, None) is not None for name in ("add_k_proj", "norm_q", "norm_k"))
    return plain and not changed and n_heads(module) is not None


def watch_attention(module: Any, path: str, layout: OutputLayout, ready: Ready) -> list[RemovableHandle]:
    """Hook an attention; `ready` is called once per pass, when queries are there and keys of a text are too."""
    if layout.is_joint_attention(path) or layout.is_cross_attention(path):
        return watch_joint_attention(module, path, layout, ready)
    return _watch_cross_attention(module, ready)


def _watch_cross_attention(module: Any, ready: Ready) -> list[RemovableHandle]:
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
                ready(Attended(q, k, mask))

        return hook

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.to_q.register_forward_hook(note("q")),
        module.to_k.register_forward_hook(note("k")),
    ]
