"""`/modulated` of all families with AdaLN against diffusers' own layers, run again on the output of the block."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import (
    auraflow,
    cogvideox,
    dit,
    flux,
    flux2,
    hidream,
    hunyuandit,
    kandinsky5,
    ltx,
    pixart,
    qwen_image,
    sana,
    sd3,
    sit,
    wan,
)
from diffprobe.backbones.modulation import may_modulate, modulate, modulation_layer
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import UnknownTap

CASES = [
    (dit, "transformer_blocks.1", lambda output: output),
    (pixart, "transformer_blocks.1", lambda output: output),
    (sana, "transformer_blocks.1", lambda output: output),
    (sd3, "transformer_blocks.0", lambda output: output[1]),  # with a second attention
    (sd3, "transformer_blocks.1", lambda output: output[1]),
    (flux, "transformer_blocks.1", lambda output: output[1]),
    (flux, "single_transformer_blocks.1", lambda output: output[1] if isinstance(output, tuple) else output),
    (flux2, "transformer_blocks.1", lambda output: output[1]),
    (flux2, "single_transformer_blocks.1", lambda output: output),
    (qwen_image, "transformer_blocks.1", lambda output: output[1]),
    (sit, "blocks.1", lambda output: output),
    (auraflow, "joint_transformer_blocks.1", lambda output: output[1]),
    (auraflow, "single_transformer_blocks.1", lambda output: output),
    (hunyuandit, "blocks.1", lambda output: output),
    (hunyuandit, "blocks.3", lambda output: output),  # with a skip connection
    (kandinsky5, "visual_transformer_blocks.1", lambda output: output),
    (wan, "blocks.1", lambda output: output),
    (ltx, "transformer_blocks.1", lambda output: output),
    (cogvideox, "transformer_blocks.1", lambda output: output[0]),
    (hidream, "double_stream_blocks.1.block", lambda output: output[0]),
    (hidream, "single_stream_blocks.1.block", lambda output: output[:, :64]),  # the image comes first
]
"""Family, block, and where the image tokens are in its output."""


SIDES = {kandinsky5: 64, hidream: 32, wan: 32}
"""Resolutions of families whose own is large."""


def again(block: Any, tokens: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return what the block's own first normalisation makes of tokens under the conditioning of a pass."""
    if getattr(block, "scale_shift_table", None) is not None:  # PixArt, Sana, LTX; Wan, whose table has a row axis
        timestep = kwargs["temb"] if "temb" in kwargs else kwargs["timestep"]
        parts = block.scale_shift_table.reshape(1, 6, -1) + timestep.reshape(len(tokens), 6, -1)
        shift, scale = parts.chunk(6, dim=1)[:2]
        return block.norm1(tokens) * (1 + scale) + shift
    if (given := kwargs.get("temb_mod_img", kwargs.get("temb_mod"))) is not None:  # FLUX.2
        shift, scale = given[:, None].chunk(given.shape[-1] // tokens.shape[-1], dim=-1)[:2]
        return (block.norm1 if hasattr(block, "norm1") else block.norm)(tokens) * (1 + scale) + shift
    if hasattr(block, "norm1_i"):  # HiDream
        shift, scale = block.adaLN_modulation(kwargs["temb"])[:, None].unflatten(2, (-1, tokens.shape[2])).unbind(2)[:2]
        return block.norm1_i(tokens) * (1 + scale) + shift
    if hasattr(block, "adaLN_modulation"):  # SiT
        shift, scale = block.adaLN_modulation(kwargs["given"])[:, None].chunk(6, dim=-1)[:2]
        return block.norm1(tokens) * (1 + scale) + shift
    if hasattr(block, "img_mod"):  # Qwen-Image
        shift, scale = block.img_mod(kwargs["temb"])[:, None].chunk(6, dim=-1)[:2]
        return block.img_norm1(tokens) * (1 + scale) + shift
    if hasattr(block, "visual_modulation"):  # Kandinsky 5
        shift, scale = block.visual_modulation(kwargs["time_embed"])[:, None].chunk(9, dim=-1)[:2]
        return block.self_attention_norm(tokens) * (1 + scale) + shift
    if kwargs.get("class_labels") is not None:  # DiT
        return block.norm1(tokens, kwargs["timestep"], kwargs["class_labels"], hidden_dtype=tokens.dtype)[0]
    norm = block.norm1 if hasattr(block, "norm1") else block.norm
    if type(norm).__name__.startswith("CogVideoX"):
        return norm(tokens, kwargs["encoder_hidden_states"], kwargs["temb"])[0]
    found = norm(tokens, emb=kwargs["temb"])
    return found if isinstance(found, Tensor) else found[0]  # HunyuanDiT: a shift alone


@pytest.mark.slow
@pytest.mark.parametrize(("family", "path", "image"), CASES)
def test_it_is_what_the_blocks_own_normalisation_makes_of_its_output(
    family: ModuleType, path: str, image: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    family.tiny(tmp_path)
    tap = f"{path}/modulated"
    features = DiffusionFeatures.from_pretrained(
        str(tmp_path), taps=[tap], timesteps=[100, 600], pool="none", device="cpu", resolution=SIDES.get(family)
    )
    block: Any = features._backbone.denoiser.get_submodule(path)
    expected: list[Tensor] = []

    signature = inspect.signature(type(block).forward)

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = signature.bind(module, *args, **kwargs).arguments  # Sana gives its blocks the timestep by position
        expected.append(again(module, image(output), dict(given)))

    # before the hooks of the pass, whose last one ends it
    handle = block.register_forward_hook(check, with_kwargs=True)
    images = torch.rand(2, 3, features.resolution, features.resolution, generator=torch.Generator().manual_seed(0))
    found = features(images, keys=["a", "b"])
    handle.remove()
    rows = torch.cat(expected)  # by timestep, then image
    for i, maps in enumerate(found.values()):
        n = maps.shape[2] * maps.shape[3]
        own = rows[2 * i : 2 * i + 2, -n:]  # a single stream has the text before the image
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), own, atol=1e-5, rtol=1e-5)
    first, second = found.values()
    assert not torch.allclose(first, second, atol=1e-3)


def test_blocks_without_adaln_have_no_such_readout(tiny_sd: Path) -> None:
    assert not any(tap.path.endswith("/modulated") for tap in list_taps(str(tiny_sd), inner=True))
    with pytest.raises(UnknownTap, match="AdaLN"):
        DiffusionFeatures.from_pretrained(str(tiny_sd), taps=["up_blocks.1/modulated"], timesteps=[1])
    assert not may_modulate(nn.Linear(2, 2)) and modulation_layer(nn.Linear(2, 2)) is None


def test_a_constant_added_to_all_channels_and_their_scale_change_nothing() -> None:
    x, shift, scale = torch.randn(2, 8, 3, 3), torch.randn(2, 8), torch.randn(2, 8)
    torch.testing.assert_close(modulate(50 * x + 7, shift, scale), modulate(x, shift, scale), atol=1e-4, rtol=1e-4)


def test_an_rms_norm_leaves_the_mean_in() -> None:
    x, shift, scale = torch.randn(2, 8, 3, 3) + 1, torch.randn(2, 8), torch.randn(2, 8)
    normed = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    expected = normed * (1 + scale)[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(modulate(x, shift, scale, centred=False), expected, atol=1e-5, rtol=0)
