"""The names of tensors in LoRA files: which module of which part, and which half of the update.

Three conventions are read: kohya (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, and for U-Nets also with the
block names of the original code, as its SDXL files have them), diffusers with PEFT (`unet.....to_q.lora_A.weight`), and
diffusers before PEFT (`unet.....attn1.processor.to_q_lora.down.weight`). kohya's names have `_` in place of the dots of
a path; they are compared with the paths of the network, so nothing is guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

DENOISER = "denoiser"
"""Name of the part whose modules have the taps; text encoders have the name of their part in the pipeline."""

_HALVES = {
    ".lora_down.weight": "down", ".lora_up.weight": "up",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".alpha": "alpha",
}  # fmt: skip
"""Ends of names -> half of the update, or its scale. The longer one of two that fit comes first."""
_KOHYA = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_DIFFUSERS = {
    "base_model.model.": DENOISER,
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_TEXT_END = re.compile(r"(?<=self_attn\.)(to_q|to_k|to_v|to_out)$")
_RESNET = {"conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3",
           "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks_0_0", "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0", "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2",
}  # fmt: skip


@dataclass(frozen=True)
class LoraKey:
    """What a name in a LoRA file means.

    Attributes:
        part: DENOISER or the part of a text encoder.
        module: path of the module, with `_` for its dots if `flat`.
        half: `down`, `up` or `alpha`.
        flat: whether the name is one of kohya's.
    """

    part: str
    module: str
    half: str
    flat: bool


def parse_key(key: str) -> LoraKey | None:
    """Return what a name means; None if it is not that of a LoRA (of LoHa, LoKr, DoRA, a whole difference, ...).

    >>> parse_key("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha")
    LoraKey(part='text_encoder', module='text_model_encoder_layers_0_mlp_fc1', half='alpha', flat=True)
    >>> parse_key("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight").module
    'mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    end = next((end for end in _HALVES if key.endswith(end)), None)
    if end is None:
        return None
    stem, half = key.removesuffix(end), _HALVES[end]
    for prefix, part in _KOHYA.items():
        if stem.startswith(prefix):
            module = stem.removeprefix(prefix)
            return LoraKey(part, module, half, True) if module and "." not in module else None
    part = DENOISER  # files of attention processors have no prefix
    for prefix, name in _DIFFUSERS.items():
        if stem.startswith(prefix):
            stem, part = stem.removeprefix(prefix), name
            break
    return LoraKey(part, _modern(stem), half, False)


def _modern(path: str) -> str:
    """Return the path of a module as it is today, without attention processors and old names."""
    old = ".processor." in path
    path = path.replace(".processor.", ".")
    if old and path.endswith(".to_out"):
        return f"{path}.0"
    return _OLD_TEXT_END.sub(lambda match: _OLD_TEXT[match[1]], path)


def targets(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that a LoRA can change, by the names that files may give them.

    Args:
        network: a denoiser or a text encoder, whole.
    Returns: path, the path with `_` for dots, for text encoders both without `text_model`, and for U-Nets the flat name
        in the original code -> linear layer or convolution.
    """
    found: dict[str, nn.Module] = {}
    original = _original_names(network)
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            short = path.removeprefix("text_model.")
            names = {path, short, f"text_model.{short}"} if "text_model" in path or _is_text(network) else {path}
            found |= {form: module for name in names for form in (name, name.replace(".", "_"))}
            if path in original:
                found[original[path]] = module
    return found


def _is_text(network: nn.Module) -> bool:
    return type(network).__name__.startswith("CLIPText")


def _original_names(network: nn.Module) -> Mapping[str, str]:
    """Map the paths of a U-Net's layers to their flat names in the original code; empty for other networks."""
    per_block = getattr(getattr(network, "config", None), "layers_per_block", None)
    if not isinstance(per_block, int) or not hasattr(network, "up_blocks"):
        return {}
    found = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            name = _OUTSIDE.get(path) or _original_name(path, per_block, network)
            if name is not None:
                found[path] = name
    return found


def _original_name(path: str, per_block: int, network: nn.Module) -> str | None:
    """Return the flat name of one layer of a block. Source: `convert_ldm_unet_checkpoint` of diffusers, inverted."""
    match = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path
    )
    if match is None:
        return None
    side, block, kind, layer, rest = match[1] or match[3], int(match[2] or 0), match[4], int(match[5]), match[6]
    rest = _RESNET.get(rest, rest) if kind == "resnets" else rest.replace(".", "_")
    if side == "mid":
        return f"middle_block_{1 if kind == 'attentions' else 2 * layer}_{rest}"
    first = block * (per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + per_block + 1}_0_op"
    if kind == "upsamplers":
        place = 2 if hasattr(network.get_submodule(f"up_blocks.{block}"), "attentions") else 1
        return f"output_blocks_{first + per_block}_{place}_conv"
    name = f"input_blocks_{first + layer + 1}" if side == "down" else f"output_blocks_{first + layer}"
    return f"{name}_{int(kind == 'attentions')}_{rest}"
