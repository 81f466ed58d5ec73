"""The readout `modulated` of transformer blocks: the block's LayerNorm, then its own AdaLN scale and shift.

DiTF (Gan et al., NeurIPS 2025): the residual stream that a block outputs is not what the next attention reads; a few
channels dominate it at all places. Normalised and modulated as at the entry of the block's attention, its features can
be compared. The scale and the shift are those of the pass, so they depend on timestep and condition; they are read
where the network computes them: a linear layer of the block's first normalisation (DiT, SD3, FLUX, AuraFlow, CogVideoX)
or of the block (Qwen-Image, SiT, Kandinsky 5, HiDream), the block's table added to the embedding of the timestep
(PixArt, Sana, Wan, LTX), or what all blocks are given (FLUX.2). The blocks of LTX have an RMS norm in its place.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffprobe.core.shapes import FeatureMap

MODULATED = "modulated"
"""Name of the readout."""
_EPS = 1e-6
"""Of the LayerNorm, unless the block's own normalisation states another (AuraFlow)."""
_ADAPTIVE = ("AdaLayerNormZero", "SD35AdaLayerNormZero", "AdaLayerNormShift", "CogVideoXLayerNormZero")
"""Starts of the names of diffusers' normalisations whose layer gives the shift first, then the scale."""
_NORMS = ("norm1", "norm", "img_norm1", "self_attention_norm", "norm1_i")
"""First normalisation of a block: `norm1`, `norm` in the single-stream blocks of FLUX, others in Qwen-Image,
Kandinsky 5 and HiDream."""
_LAYERS = ("img_mod", "adaLN_modulation")
"""Layers of a block, the last one linear, that give its shift and its scale first (Qwen-Image, SiT, HiDream)."""
_OUTPUT = "visual_modulation.out_layer"
"""The same as a module with a name (Kandinsky 5)."""
MODULATION_LAYERS = ("norm1.linear", "norm.linear", *(f"{name}.1" for name in _LAYERS), _OUTPUT)
"""Layers inside a block that may be hooked to read it."""
_EMBEDDINGS = ("timestep", "temb")
"""Arguments of a block that its table is added to (`temb` in Wan and LTX)."""
_GIVEN = ("temb_mod_img", "temb_mod")
"""Arguments of a block that hold its shift and its scale first (FLUX.2)."""


def modulation_layer(block: nn.Module) -> str | None:
    """Return the path, inside a block, of the linear layer that gives its shift and scale first; None without one."""
    for name in _NORMS:
        norm = getattr(block, name, None)
        linear = getattr(norm, "linear", None)
        if type(norm).__name__.startswith(_ADAPTIVE) and isinstance(linear, nn.Linear):
            return f"{name}.linear"
    for name in _LAYERS:
        layers = getattr(block, name, None)
        if isinstance(layers, nn.Sequential) and isinstance(layers[-1], nn.Linear) and _first_norm(block) is not None:
            return f"{name}.{len(layers) - 1}"
    return _OUTPUT if hasattr(block, _OUTPUT.partition(".")[0]) else None


def _first_norm(block: nn.Module) -> nn.Module | None:
    return next((getattr(block, name) for name in _NORMS if hasattr(block, name)), None)


def may_modulate(block: nn.Module) -> bool:
    """Return whether a module is a block whose AdaLN shift and scale can be read."""
    return modulation_layer(block) is not None or _table(block) is not None or _argument(block) is not None


def _argument(block: nn.Module) -> str | None:
    """Return the argument of a block that holds its shift and scale; None without one."""
    names = inspect.signature(type(block).forward).parameters
    return next((name for name in _GIVEN if name in names), None)


def _layer_norm(block: nn.Module) -> Any:
    """Return a block's first LayerNorm, which may be inside an adaptive one."""
    norm = _first_norm(block)
    return getattr(norm, "norm", norm)


def _table(block: nn.Module) -> Float[Tensor, "6 channels"] | None:
    """Return the table of a block that adds it to the embedding of the timestep; None without one."""
    table = getattr(block, "scale_shift_table", None)
    if isinstance(table, Tensor) and table.ndim == 3 and len(table) == 1:  # Wan
        table = table[0]
    if getattr(block, "norm1", None) is not None and getattr(block.norm1, "weight", None) is not None:
        return None  # a norm with a scale of its own
    return table if isinstance(table, Tensor) and table.ndim == 2 and len(table) == 6 else None


def _with_scale(parts: Float[Tensor, "batch parts channels"], block: Any) -> Float[Tensor, "batch 2 channels"]:
    """Return shift and scale, with the weight and bias of the block's own LayerNorm in them where it has such.

    HunyuanDiT has a shift alone.
    """
    norm = _layer_norm(block)
    if getattr(norm, "weight", None) is None:
        return parts
    shift = parts[:, 0].float()
    factor = 1 + parts[:, 1].float() if parts.shape[1] > 1 else torch.ones_like(shift)
    return torch.stack([shift + factor * norm.bias.float(), factor * norm.weight.float() - 1], dim=1)


def modulate(
    x: FeatureMap,
    shift: Float[Tensor, "batch channels"],
    scale: Float[Tensor, "batch channels"],
    eps: float = _EPS,
    *,
    centred: bool = True,
) -> FeatureMap:
    """Return LayerNorm(x) * (1 + scale) + shift over the channels of each place, in float32.

    Args:
        centred: take the mean over channels off first; without it the norm is an RMS norm.
    """
    norm = nn.functional.layer_norm if centred else nn.functional.rms_norm
    normed = norm(x.movedim(1, -1).float(), (x.shape[1],), eps=eps).movedim(-1, 1)
    return normed * (1 + scale.float()[:, :, None, None]) + shift.float()[:, :, None, None]


def watch_modulated(
    block: Any, image: Callable[[Any], FeatureMap | None], give: Callable[[FeatureMap | None], None]
) -> list[RemovableHandle]:
    """Hook a block; `give` is called with the modulated map of its output, None if `image` finds no map there."""
    seen: dict[str, Tensor] = {}

    def from_layer(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["parts"] = _with_scale(output.unflatten(-1, (-1, width))[:, :2], block)

    signature = inspect.signature(type(block).forward)

    def from_table(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        table, given = _table(module), signature.bind(module, *args, **kwargs).arguments
        assert table is not None
        timestep: Tensor = next(given[name] for name in _EMBEDDINGS if name in given)
        seen["parts"] = (table[None] + timestep.reshape(len(timestep), 6, -1))[:, :2]

    def from_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values: Tensor = signature.bind(module, *args, **kwargs).arguments[argument]
        attention: Any = module.get_submodule("attn")
        seen["parts"] = values.reshape(len(values), -1, attention.query_dim)[:, :2]

    def read(module: nn.Module, args: Any, output: Any) -> None:
        found, parts = image(output), seen.pop("parts", None)
        ready = None if found is None or parts is None else (found, parts[:, 0], parts[:, 1])
        give(None if ready is None else modulate(*ready, eps, centred=centred))

    path, argument = modulation_layer(block), _argument(block) or ""
    eps = float(getattr(_layer_norm(block), "eps", _EPS))
    centred = "RMS" not in type(_layer_norm(block)).__name__
    if path is not None:
        linear = block.get_submodule(path)
        width = getattr(_layer_norm(block), "normalized_shape", (linear.in_features,))[0]
        first = linear.register_forward_hook(from_layer)
    else:
        enter = from_table if _table(block) is not None else from_argument
        first = block.register_forward_pre_hook(enter, with_kwargs=True)
    return [first, block.register_forward_hook(read)]
