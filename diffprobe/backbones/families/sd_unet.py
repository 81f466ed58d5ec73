"""Stable Diffusion pipelines: a cross-attention U-Net over VAE latents, conditioned on a CLIP text.

SD 1.x, SD 2.x (predicting epsilon or v), latent consistency models, and fine-tunes of their U-Nets (CleanDIFT) as
`denoiser_weights`. Its forward process is variance-preserving; timestep t is
on the training grid (0..999), larger is noisier. A U-Net with distilled guidance also takes the guidance scale.
Random weights are those of the U-Net alone: VAE and text encoder stay trained, so that the control has the same input.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import load_denoiser_and_vae
from diffprobe.backbones.loading import require_parts
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.text_encoders import TEXT_CONDITIONS, load_clip_text
from diffprobe.backbones.unet import (
    GUIDANCE,
    TextUnet,
    check_latents,
    digest_tokenizer,
    guidance_embedding,
    image_side,
    make_unet,
    read_unet_config,
    unet_spec,
)
from diffprobe.backbones.vae import latent_geometry
from diffprobe.backbones.weights import digest_denoiser, digest_part, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
_KIND = "UNet2DConditionModel"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _PIPELINES


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    config = read_unet_config(checkpoint, _KIND)
    read_config(checkpoint, "vae")
    channels, factor = latent_geometry(checkpoint.part("vae"))
    check_latents(checkpoint, config, channels)
    if config.get("addition_embed_type") not in (None, "text") or config.get("class_embed_type"):
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' needs more conditioning than a text; this family has no other.",
            *(f"{name}: {config.get(name)}" for name in ("addition_embed_type", "class_embed_type")),
        )
    unet = make_unet(checkpoint, config)
    side = image_side(checkpoint, config, resolution, multiple=factor, factor=factor)
    size, width = side // factor, unet.config.cross_attention_dim
    n_tokens = read_config(checkpoint, "text_encoder").get("max_position_embeddings", 77)
    if not isinstance(width, int):
        raise WeightsMismatch(f"the U-Net of '{checkpoint.name}' takes texts of several widths: {list(width)}.")
    scale = guidance_embedding(config)

    def run(network: nn.Module) -> object:
        return network(
            torch.empty(1, channels, size, size, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            encoder_hidden_states=torch.empty(1, n_tokens, width, device="meta"),
            timestep_cond=None if scale is None else scale.to("meta"),
            return_dict=False,
        )

    return unet_spec(
        "sd_unet",
        checkpoint,
        unet,
        run=run,
        signature=[config, size, n_tokens],
        side=side,
        latent_shape=(channels, size, size),
        conditions=TEXT_CONDITIONS,
        conditioning={} if scale is None else {"guidance_scale": GUIDANCE},
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the U-Net only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    unet, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part="unet", encoders=["text_encoder"])
    text = load_clip_text(checkpoint.part("text_encoder").parent, dtype=options.dtype)
    scale = guidance_embedding(read_unet_config(checkpoint, _KIND))
    return SdUnet(unet, vae, {"text_encoder": text}, scale, prediction=spec.prediction)


class SdUnet(TextUnet):
    """A loaded Stable Diffusion checkpoint."""

    def encode(self, prompts: list[str]) -> Condition:
        """Take the text encoder's last hidden state."""
        return {"encoder_hidden_states": self.texts["text_encoder"](prompts)[0]}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the U-Net once."""
        return self.run_unet(x_t, timesteps, condition["encoder_hidden_states"])


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    require_parts(checkpoint, "unet", ("vae", "text_encoder"), trained=trained)
    return {
        "denoiser": digest_denoiser(checkpoint, "unet", weights=trained),
        "vae": digest_part(checkpoint.part("vae")),
        "text_encoder": digest_part(checkpoint.part("text_encoder")),
        "tokenizer": digest_tokenizer(checkpoint.part("tokenizer")),
    }


def tiny(
    path: Path | str,
    *,
    seed: int = 0,
    channels: Sequence[int] = (16, 32, 32),
    scheduler: str = "DDIMScheduler",
    resolution: int = 32,
    prediction: str = "epsilon",
    lcm: bool = False,
) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        channels: width of each U-Net level, highest first. All levels but the lowest have cross-attention.
        scheduler: diffusers class of the scheduler that the pipeline ships; the betas are Stable Diffusion's for all.
        resolution: image side in pixels; the VAE halves it.
        prediction: what the U-Net predicts, `epsilon` or `v_prediction`.
        lcm: write a latent consistency model: another pipeline, and a U-Net that takes the guidance scale.
    Returns: `path`.
    """
    import diffusers

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
            time_cond_proj_dim=32 if lcm else None,
        )
        vae = tiny_vae(resolution)
        tokenizer = tiny_tokenizer(path / "tokenizer")
        text_encoder = tiny_clip_text(tokenizer)
    made = getattr(diffusers, scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, prediction_type=prediction
    )
    if "clip_sample" in made.config:
        made.register_to_config(clip_sample=False)
    pipeline: Any = getattr(diffusers, _PIPELINES[lcm])(
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
