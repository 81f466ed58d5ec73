"""Write a pipeline folder as one safetensors file in the names of the original code: the inverse of what is tested.

The names are those of CompVis' and Stability's repositories: `model.diffusion_model.input_blocks...`.
"""

import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip
_OPEN = {"embeddings.token_embedding.weight": "token_embedding.weight",
         "embeddings.position_embedding.weight": "positional_embedding",
         "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}  # fmt: skip
_OPEN_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
               "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(folder: Path, path: Path, *, kind: str) -> Path:
    """Write a pipeline folder with one layer per block as a single file.

    Args:
        kind: `sd1`, `sd2` (OpenCLIP's text encoder) or `sdxl` (both).
    """
    unet = _part(folder, "unet")
    tensors = {f"model.diffusion_model.{_unet(name, unet)}": x for name, x in unet.items()}
    for name, x in _part(folder, "vae").items():
        new = _vae(name)
        tensors[f"first_stage_model.{new}"] = x[..., None, None] if ".attn_1." in new and x.ndim == 2 else x
    text = _part(folder, "text_encoder")
    if kind == "sd1":
        tensors |= {f"cond_stage_model.transformer.text_model.{name}": x for name, x in text.items()}
    elif kind == "sd2":
        tensors |= _open_clip(text, "cond_stage_model.model.")
    else:
        tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": x for name, x in text.items()}
        tensors |= _open_clip(_part(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    tensors |= {"alphas_cumprod": torch.zeros(3), "model_ema.decay": torch.zeros(())}
    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    return path


def _part(folder: Path, part: str) -> dict[str, Tensor]:
    [file] = (folder / part).glob("*.safetensors")
    return {name.removeprefix("text_model."): x for name, x in load_file(file).items()}


def _unet(name: str, names: Collection[str]) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{end}"
    match = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert match is not None, name
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        inner, _, end = rest.rpartition(".")
        rest = f"{_RESNET[inner]}.{end}"
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"
    place = 2 * block + layer + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{2 * block + 2}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        has_attention = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{2 * block + 1}.{1 + has_attention}.{rest}"
    return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"


def _vae(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{_LEVELS - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{_LEVELS - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        inner, _, end = rest.rpartition(".")
        name = f"{head}mid.attn_1.{_VAE_ATTENTION[inner]}.{end}"
    return name


_LEVELS = 2
"""Levels of the autoencoder of tiny pipelines."""


def _open_clip(text: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found, joint = {f"{prefix}logit_scale": torch.zeros(())}, dict[str, dict[str, Tensor]]()
    for name, x in text.items():
        if name in _OPEN:
            found[prefix + _OPEN[name]] = x
        elif name == "text_projection.weight":
            found[f"{prefix}text_projection"] = x.T
        else:
            layer = name.replace("encoder.layers.", f"{prefix}transformer.resblocks.")
            match = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", layer)
            if match is not None:
                joint.setdefault(f"{match[1]}.attn.in_proj_{match[3]}", {})[match[2]] = x
                continue
            for new, old in _OPEN_LAYER.items():
                layer = layer.replace(new, old)
            found[layer] = x
    return found | {name: torch.cat([part[letter] for letter in "qkv"]) for name, part in joint.items()}
