"""The models of `diffprobe bench extraction`: random weights in the shapes of published ones, written to a folder.

`sd15` has the shape of Stable Diffusion 1.5, `dit` that of DiT-B/2 (2212.09748, table 1), `mmdit` that of Stable
Diffusion 3's transformer at depth 12 (2403.03206: its width is 64 x depth), with two CLIP text encoders and without T5,
whose tokens are zeros then. All have the image encoder of Stable Diffusion, that of `mmdit` with 16 channels. The
others are small and for tests.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.core.shapes import FeatureMap

TIMESTEPS = (0, 25, 100, 200, 500)
"""The timesteps of Revelio."""
_VAE = (128, 256, 512, 512)
_SMALL_VAE = (64, 64, 64, 64)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model, and what is read from it."""

    kind: str
    """`unet`, `dit` or `mmdit`."""
    one: str
    """The tap of the setting with one tap."""
    grid: tuple[str, ...]
    """The taps of the setting with four, by depth."""
    end: str
    """A module that runs last: a tap there keeps the whole denoiser."""
    vae: tuple[int, ...]
    """Channels of the image encoder per level."""
    layers: int
    """Layers of a level, or blocks of a transformer."""
    widths: tuple[int, ...] = ()
    """Channels of a U-Net per level."""
    heads: int = 0
    """Heads of a transformer."""
    head_width: int = 64
    """Width of a head."""
    text: tuple[int, int, int] = (0, 0, 0)
    """Width, layers and heads of each text encoder."""


def _blocks(*numbers: int) -> tuple[str, ...]:
    return tuple(f"transformer_blocks.{i}" for i in numbers)


_UNET: dict[str, Any] = {
    "kind": "unet",
    "one": "up_blocks.1",
    "grid": ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"),
    "end": "conv_out",
}
_DIT: dict[str, Any] = {"kind": "dit", "end": "proj_out_2"}
_MMDIT: dict[str, Any] = {"kind": "mmdit", "end": "proj_out"}
SIZES: dict[str, ModelShape] = {
    "sd15": ModelShape(**_UNET, widths=(320, 640, 1280, 1280), vae=_VAE, layers=2, text=(768, 12, 12)),
    "dit": ModelShape(**_DIT, one=_blocks(5)[0], grid=_blocks(1, 3, 5, 7), vae=_VAE, layers=12, heads=12),
    "mmdit": ModelShape(
        **_MMDIT, one=_blocks(5)[0], grid=_blocks(1, 3, 5, 7), vae=_VAE, layers=12, heads=12, text=(768, 12, 12)
    ),
    "small": ModelShape(**_UNET, widths=(64, 128, 128, 128), vae=_SMALL_VAE, layers=1, text=(32, 2, 4)),
    "small-dit": ModelShape(
        **_DIT, one=_blocks(1)[0], grid=_blocks(0, 1, 2, 3), vae=_SMALL_VAE, layers=5, heads=2, head_width=16
    ),
    "small-mmdit": ModelShape(
        **_MMDIT, one=_blocks(1)[0], grid=_blocks(0, 1, 2, 3), vae=_SMALL_VAE, layers=5, heads=2, head_width=16,
        text=(32, 2, 4),
    ),
}  # fmt: skip
"""Name of a size -> model. The one tap of a transformer is its middle, the four divide its first two thirds evenly."""


def pooled(shape: ModelShape, output: Any) -> Tensor:
    """Return the spatial mean [batch, channels] of what a tap outputs, without the machinery of diffprobe.

    Args:
        output: of a block: a map or tuples with the map first (unet); tokens (dit); tokens of text and image (mmdit).
    """
    if shape.kind == "mmdit":
        return output[1].float().mean(1)
    found: FeatureMap = output if isinstance(output, Tensor) else output[0]
    return found.float().mean((2, 3) if shape.kind == "unet" else 1)


def write_model(folder: Path, shape: ModelShape, resolution: int) -> Path:
    """Write a pipeline folder. The denoiser has a config only; its random weights are drawn when it is opened.

    Args:
        resolution: image side in pixels; the image encoder reduces it by 8.
    """
    import diffusers

    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        vae: Any = diffusers.AutoencoderKL(
            block_out_channels=shape.vae,
            layers_per_block=2 if shape.kind != "unet" and shape.vae == _VAE else min(shape.layers, 2),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16 if shape.kind == "mmdit" else 4,
            sample_size=512,
        )
        vae.save_pretrained(folder / "vae")
        {"unet": _write_unet, "dit": _write_dit, "mmdit": _write_mmdit}[shape.kind](folder, shape, resolution // 8)
    return folder


def _write_unet(folder: Path, shape: ModelShape, side: int) -> None:
    import diffusers

    _write_clip(folder, shape)
    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(
            block_out_channels=shape.widths, layers_per_block=shape.layers, cross_attention_dim=shape.text[0]
        )
    unet.save_config(folder / "unet")
    _write_schedule(folder)
    _write_index(folder, "StableDiffusionPipeline")


def _write_dit(folder: Path, shape: ModelShape, side: int) -> None:
    import diffusers

    with torch.device("meta"):
        dit: Any = diffusers.DiTTransformer2DModel(
            sample_size=side,
            num_layers=shape.layers,
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_width,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        )
    dit.save_config(folder / "transformer")
    _write_schedule(folder)
    _write_index(folder, "DiTPipeline")


def _write_mmdit(folder: Path, shape: ModelShape, side: int) -> None:
    import diffusers

    width = shape.heads * shape.head_width
    with torch.device("meta"):
        mmdit: Any = diffusers.SD3Transformer2DModel(
            sample_size=side,
            pos_embed_max_size=2 * side,
            in_channels=16,
            out_channels=16,
            num_layers=shape.layers,
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_width,
            caption_projection_dim=width,
            joint_attention_dim=max(2 * shape.text[0], width),
            pooled_projection_dim=2 * shape.text[0],
        )
    mmdit.save_config(folder / "transformer")
    for end in ("", "_2"):
        _write_clip(folder, shape, end, projection=True)
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_config(folder / "scheduler")
    _write_index(folder, "StableDiffusion3Pipeline")


def _write_clip(folder: Path, shape: ModelShape, end: str = "", *, projection: bool = False) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from diffprobe.generative.tokenizer import train_tokenizer

    width, layers, heads = shape.text
    tokenizer = train_tokenizer(["a photo"], vocab_size=600, max_tokens=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    text: Any = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    tokenizer.save_pretrained(folder / f"tokenizer{end}")
    text.save_pretrained(folder / f"text_encoder{end}")


def _write_schedule(folder: Path) -> None:
    import diffusers

    scheduler: Any = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.save_config(folder / "scheduler")


def _write_index(folder: Path, pipeline: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
