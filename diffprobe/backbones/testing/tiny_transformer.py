"""Tiny VAEs and T5 encoders with random weights, for the tiny pipelines of tests.

All weights are drawn from the global generator; callers seed and restore it.
"""

import json
from pathlib import Path
from typing import Any

from diffprobe.backbones.testing.tiny_text import WORDS


def tiny_vae(
    resolution: int, *, latent_channels: int = 4, shift: float | None = None, flow: bool = False, levels: int = 2
) -> Any:
    """Draw an AutoencoderKL that halves a side, or reduces it by 2^(levels - 1).

    Args:
        resolution: image side in pixels.
        latent_channels: channels of its latents.
        shift: subtracted from the latents before they are scaled.
        flow: leave out the convolutions around the latents, as in the VAEs of flow models.
        levels: number of its levels; between two of them a side is halved.
    """
    import diffusers

    return diffusers.AutoencoderKL(
        sample_size=resolution,
        block_out_channels=(16,) * (levels - 1) + (32,),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=6.0,  # brings the random latents near unit variance
        shift_factor=shift,
        use_quant_conv=not flow,
        use_post_quant_conv=not flow,
        force_upcast=False,
    )


def tiny_t5(folder: Path, *, width: int = 32, many_languages: bool = False) -> tuple[Any, Any]:
    """Write and load a T5 tokenizer of letters and a few words; draw an encoder of two layers for it.

    Args:
        folder: the tokenizer's folder, created if it does not exist.
        width: of the encoder's states.
        many_languages: make the encoder a UMT5, whose layers have positions of their own each.
    Returns: tokenizer and encoder.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (  # type: ignore[attr-defined]  # made on demand
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [f"▁{word}" for word in WORDS.split() if len(word) > 1]
    pieces = [("▁", -3.0), *((word, -4.0) for word in words), *((c, -6.0) for c in "abcdefghijklmnopqrstuvwxyz,.-'")]
    made = Tokenizer(models.Unigram([*((token, 0.0) for token in special.values()), *pieces], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0, **special}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "additional_special_tokens": []}), encoding="utf-8"
    )
    tokenizer = T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    kind: Any = UMT5Config if many_languages else T5Config
    config = kind(
        vocab_size=len(tokenizer),
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return tokenizer, UMT5EncoderModel(config) if many_languages else T5EncoderModel(config)


def tiny_dc(*, latent_channels: int = 4) -> Any:
    """Draw an AutoencoderDC that halves a side.

    Args:
        latent_channels: channels of its latents.
    """
    import diffusers

    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        attention_head_dim=8,
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )


def tiny_flux2_vae(*, latent_channels: int = 4) -> Any:
    """Draw an AutoencoderKLFlux2 that halves a side, with statistics of its latents other than 0 and 1.

    Args:
        latent_channels: channels of its latents, before places are put side by side.
    """
    import diffusers
    import torch

    vae: Any = diffusers.AutoencoderKLFlux2(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae.bn.running_mean.copy_(0.1 * torch.randn(4 * latent_channels))
    vae.bn.running_var.copy_(0.02 + 0.02 * torch.rand(4 * latent_channels))  # near that of random latents
    return vae


def tiny_qwen_vae(*, latent_channels: int = 4) -> Any:
    """Draw an AutoencoderKLQwenImage that halves a side.

    Args:
        latent_channels: channels of its latents.
    """
    import diffusers

    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=latent_channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1 * i for i in range(latent_channels)],
        latents_std=[0.1 + 0.1 * i for i in range(latent_channels)],
    )


def tiny_wan_vae(*, latent_channels: int = 4, patch: int | None = None) -> Any:
    """Draw an AutoencoderKLWan that halves a side.

    Args:
        latent_channels: channels of its latents.
        patch: places per side that are put side by side before, as in Wan 2.2; a side is reduced by that factor, too.
    """
    import diffusers

    factor = patch or 1
    return diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=latent_channels,
        dim_mult=[1, 2] if patch is None else [1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1 * i for i in range(latent_channels)],
        latents_std=[0.1 + 0.1 * i for i in range(latent_channels)],
        is_residual=patch is not None,
        in_channels=3 * factor**2,
        out_channels=3 * factor**2,
        patch_size=patch,
        scale_factor_temporal=2,
        scale_factor_spatial=2 * factor,
    )


def tiny_cogvideox_vae(*, latent_channels: int = 4) -> Any:
    """Draw an AutoencoderKLCogVideoX that halves a side.

    Args:
        latent_channels: channels of its latents.
    """
    import diffusers

    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=2,
        sample_height=32,
        sample_width=48,
        scaling_factor=6.0,  # brings the random latents near unit variance
        force_upcast=False,
    )


def tiny_ltx_vae(*, latent_channels: int = 4, conditioned: bool = False) -> Any:
    """Draw an AutoencoderKLLTXVideo that reduces a side by 4, with statistics of its latents other than 0 and 1.

    Args:
        latent_channels: channels of its latents.
        conditioned: make its decoder take the noise level of the latents.
    """
    import diffusers
    import torch

    vae: Any = diffusers.AutoencoderKLLTXVideo(
        latent_channels=latent_channels,
        block_out_channels=(8, 16),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(16, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        timestep_conditioning=conditioned,
        patch_size=2,
    )
    vae.latents_mean.copy_(0.1 * torch.randn(latent_channels))
    vae.latents_std.copy_(0.3 + 0.2 * torch.rand(latent_channels))
    return vae
