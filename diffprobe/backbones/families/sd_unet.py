"""Stable Diffusion pipelines: a cross-attention U-Net over VAE latents, told a CLIP text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TINY_WORDS = "a an of the photo noto twemoji emoji cat dog red blue green circle square light dark face hand tree sun moon star".split()


def matches(index: dict[str, Any]) -> bool:
    """Tell from `model_index.json` whether a checkpoint is of this family."""
    return index.get("_class_name") == "StableDiffusionPipeline"


def tiny(
    path: Path | str,
    *,
    seed: int = 0,
    channels: Sequence[int] = (16, 32, 32),
    scheduler: str = "DDIMScheduler",
    resolution: int = 32,
) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        channels: width of each U-Net level; its length is the number of levels. All but the lowest have cross-attention.
        scheduler: diffusers class of the scheduler that the pipeline ships; the betas are Stable Diffusion's for all.
        resolution: image side in pixels; the VAE halves it.
    Returns: `path`.
    """
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    path = Path(path)
    n = len(channels)
    cross = n - 1 if n > 1 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=resolution // 2,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",) * (n - cross),
            up_block_types=("UpBlock2D",) * (n - cross) + ("CrossAttnUpBlock2D",) * cross,
        )
        vae = diffusers.AutoencoderKL(
            sample_size=resolution,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            mid_block_add_attention=False,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=6.0,  # brings the random encoder's latents near unit variance, so that images stand out from the noise
            force_upcast=False,
        )
        tokenizer = _tiny_tokenizer(path)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    made = getattr(diffusers, scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    if "clip_sample" in made.config:
        made.register_to_config(clip_sample=False)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=made,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path)
    return path


def _tiny_tokenizer(path: Path) -> Any:
    """Write and load a CLIP tokenizer that knows the letters, and the tiny words as one token each."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-_'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in _TINY_WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    folder = path / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
