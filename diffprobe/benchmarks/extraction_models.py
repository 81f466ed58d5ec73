"""The models of `diffprobe bench extraction`: random weights in the shapes of published ones, written to a folder.

`sd15` has the shape of Stable Diffusion 1.5, `sdxl` that of Stable Diffusion XL (2307.01952, table 1; both text
encoders have half of its text width), `dit` that of DiT-B/2 (2212.09748, table 1), `mmdit` that of Stable Diffusion 3's
transformer at depth 12 (2403.03206: its width is 64 x depth), with two CLIP text encoders and without T5, whose tokens
are zeros then, and `flux` that of the transformer of FLUX.1 dev, with a T5 of two layers. All have the image encoder of
Stable Diffusion, those of `mmdit` and `flux` with 16 channels. The others are small and for tests.
"""

import json
from collections.abc import Callable
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
_SDXL_TEXTS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
_SMALL_VAE = (64, 64, 64, 64)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model, and what is read from it."""

    kind: str
    """`unet`, `sdxl`, `dit`, `mmdit` or `flux`."""
    one: str
    """The tap of the setting with one tap."""
    grid: tuple[str, ...]
    """The taps of the setting with four, by depth."""
    end: str
    """A module that runs last: a tap there keeps the whole denoiser."""
    vae: tuple[int, ...]
    """Channels of the image encoder per level."""
    layers: int
    """Layers of a level, or blocks of a transformer, of `flux` those with two streams."""
    widths: tuple[int, ...] = ()
    """Channels of a U-Net per level."""
    heads: int = 0
    """Heads of a transformer."""
    head_width: int = 64
    """Width of a head."""
    text: tuple[int, int, int] = (0, 0, 0)
    """Width, layers and heads of each text encoder (CLIP)."""
    attentions: tuple[int, ...] = ()
    """Transformer layers of an SDXL U-Net per level; the first level has none."""
    singles: int = 0
    """Blocks of `flux` with one stream."""
    t5: int = 0
    """Width of its T5."""


def _blocks(*numbers: int, single: bool = False) -> tuple[str, ...]:
    return tuple(f"{'single_' if single else ''}transformer_blocks.{i}" for i in numbers)


_UNET: dict[str, Any] = {
    "kind": "unet",
    "one": "up_blocks.1",
    "grid": ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"),
    "end": "conv_out",
}
_SDXL: dict[str, Any] = {
    "kind": "sdxl",
    "one": "up_blocks.0",
    "grid": ("down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"),
    "end": "conv_out",
}
_FLUX: dict[str, Any] = {"kind": "flux", "end": "proj_out"}
_DIT: dict[str, Any] = {"kind": "dit", "end": "proj_out_2"}
_MMDIT: dict[str, Any] = {"kind": "mmdit", "end": "proj_out"}
SIZES: dict[str, ModelShape] = {
    "sd15": ModelShape(**_UNET, widths=(320, 640, 1280, 1280), vae=_VAE, layers=2, text=(768, 12, 12)),
    "sdxl": ModelShape(
        **_SDXL, widths=(320, 640, 1280), attentions=(1, 2, 10), vae=_VAE, layers=2, text=(1024, 12, 16)
    ),
    "flux": ModelShape(
        **_FLUX, one="single_transformer_blocks.9", grid=(*_blocks(9, 18), *_blocks(9, 18, single=True)), vae=_VAE,
        layers=19, singles=38, heads=24, head_width=128, text=(768, 12, 12), t5=4096,
    ),
    "dit": ModelShape(**_DIT, one=_blocks(5)[0], grid=_blocks(1, 3, 5, 7), vae=_VAE, layers=12, heads=12),
    "mmdit": ModelShape(
        **_MMDIT, one=_blocks(5)[0], grid=_blocks(1, 3, 5, 7), vae=_VAE, layers=12, heads=12, text=(768, 12, 12)
    ),
    "small": ModelShape(**_UNET, widths=(64, 128, 128, 128), vae=_SMALL_VAE, layers=1, text=(32, 2, 4)),
    "small-sdxl": ModelShape(
        **_SDXL, widths=(64, 64, 128), attentions=(1, 1, 2), vae=_SMALL_VAE, layers=1, text=(32, 2, 4)
    ),
    "small-flux": ModelShape(
        **_FLUX, one="single_transformer_blocks.0", grid=(*_blocks(0, 1), *_blocks(0, 1, single=True)), vae=_SMALL_VAE,
        layers=2, singles=3, heads=2, head_width=16, text=(32, 2, 4), t5=32,
    ),
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
        output: of a block: a map or tuples with the map first (unet, sdxl); tokens (dit); tokens of text and of image
            (mmdit, flux).
    """
    if shape.kind in ("mmdit", "flux"):
        return output[1].float().mean(1)
    found: FeatureMap = output if isinstance(output, Tensor) else output[0]
    return found.float().mean(1 if shape.kind == "dit" else (2, 3))


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
            layers_per_block=2 if shape.vae == _VAE else min(shape.layers, 2),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16 if shape.kind in ("mmdit", "flux") else 4,
            sample_size=512,
        )
        vae.save_pretrained(folder / "vae")
        _WRITERS[shape.kind](folder, shape, resolution // 8)
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


def _write_sdxl(folder: Path, shape: ModelShape, side: int) -> None:
    import diffusers

    width, sizes = shape.text[0], 256
    for end in ("", "_2"):
        _write_clip(folder, shape, end, projection=end == "_2")
    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(
            sample_size=side,
            block_out_channels=shape.widths,
            layers_per_block=shape.layers,
            transformer_layers_per_block=shape.attentions,
            attention_head_dim=tuple(channels // 64 for channels in shape.widths),
            use_linear_projection=True,
            cross_attention_dim=2 * width,
            addition_embed_type="text_time",
            addition_time_embed_dim=sizes,
            projection_class_embeddings_input_dim=width + 6 * sizes,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
    unet.save_config(folder / "unet")
    _write_schedule(folder)
    texts = {name: ["transformers", kind] for name, kind in _SDXL_TEXTS.items()}
    _write_index(folder, "StableDiffusionXLPipeline", **texts, force_zeros_for_empty_prompt=True)


def _write_flux(folder: Path, shape: ModelShape, side: int) -> None:
    import diffusers

    from diffprobe.backbones.testing.tiny_transformer import tiny_t5

    width = shape.head_width
    with torch.device("meta"):
        flux: Any = diffusers.FluxTransformer2DModel(
            in_channels=64,
            num_layers=shape.layers,
            num_single_layers=shape.singles,
            num_attention_heads=shape.heads,
            attention_head_dim=width,
            joint_attention_dim=shape.t5,
            pooled_projection_dim=shape.text[0],
            guidance_embeds=True,
            axes_dims_rope=(width // 8, 7 * width // 16, 7 * width // 16) if width >= 32 else (4, 6, 6),
        )
    flux.save_config(folder / "transformer")
    _write_clip(folder, shape)
    _, t5 = tiny_t5(folder / "tokenizer_2", width=shape.t5)
    t5.save_pretrained(folder / "text_encoder_2")
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.save_config(folder / "scheduler")
    _write_index(folder, "FluxPipeline")


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


def _write_index(folder: Path, pipeline: str, **settings: object) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **settings}), encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, ModelShape, int], None]] = {
    "unet": _write_unet, "sdxl": _write_sdxl, "dit": _write_dit, "mmdit": _write_mmdit, "flux": _write_flux,
}  # fmt: skip
