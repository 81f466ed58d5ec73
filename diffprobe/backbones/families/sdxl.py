"""Stable Diffusion XL pipelines (base, Turbo): a cross-attention U-Net over VAE latents, with two text encoders.

The U-Net takes the states of both encoders, concatenated (their last but one layer), the second one's pooled embedding,
and sizes: those of an image that was neither scaled nor cropped, so original and target size are the resolution. Where
the checkpoint has `force_zeros_for_empty_prompt` (as SDXL, which was trained so), the condition of an empty text is
zeros, as in the pipeline's unconditional branch; a prompt of one blank encodes the empty prompt itself. Refiners, which
lack the first encoder, are refused.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import load_denoiser_and_vae
from diffprobe.backbones.loading import require_parts
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.part_config import has_part
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.backbones.text_encoders import TEXT_CONDITIONS, ClipTextEncoder, load_clip_text
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
from diffprobe.backbones.vae import VaeEncoder, latent_geometry
from diffprobe.backbones.weights import digest_denoiser, digest_part, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
_KIND = "UNet2DConditionModel"
_TEXTS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_N_SIZES = 6


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _PIPELINES


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    _refuse_refiners(checkpoint)
    config = read_unet_config(checkpoint, _KIND)
    read_config(checkpoint, "vae")
    channels, factor = latent_geometry(checkpoint.part("vae"))
    check_latents(checkpoint, config, channels)
    pooled = _check_text(checkpoint, config)
    unet = make_unet(checkpoint, config)
    side = image_side(checkpoint, config, resolution, multiple=factor, factor=factor)
    size, width = side // factor, unet.config.cross_attention_dim
    n_tokens = read_config(checkpoint, "text_encoder").get("max_position_embeddings", 77)
    scale = guidance_embedding(config)

    def run(network: nn.Module) -> object:
        conditioning = {
            "text_embeds": torch.empty(1, pooled, device="meta"),
            "time_ids": torch.empty(1, _N_SIZES, device="meta"),
        }
        return network(
            torch.empty(1, channels, size, size, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            encoder_hidden_states=torch.empty(1, n_tokens, width, device="meta"),
            timestep_cond=None if scale is None else scale.to("meta"),
            added_cond_kwargs=conditioning,
            return_dict=False,
        )

    return unet_spec(
        "sdxl",
        checkpoint,
        unet,
        run=run,
        signature=[config, size, n_tokens],
        side=side,
        latent_shape=(channels, size, size),
        conditions=TEXT_CONDITIONS,
        conditioning={
            "original_size": [side, side],
            "crop": [0, 0],
            "target_size": [side, side],
            "empty_text": "zeros" if _zeros(checkpoint) else "encoded",
            **({} if scale is None else {"guidance_scale": GUIDANCE}),
        },
    )


def _refuse_refiners(checkpoint: Checkpoint) -> None:
    lacking = [part for part in _TEXTS if not has_part(checkpoint.index, part)]
    if lacking or checkpoint.index.get("requires_aesthetics_score"):
        raise WeightsMismatch(
            f"'{checkpoint.name}' is a refiner of Stable Diffusion XL, whose conditioning differs from a base model's.",
            f"missing: {', '.join(lacking)}" if lacking else "its pipeline requires an aesthetics score",
            fix="name a base model, for example stabilityai/stable-diffusion-xl-base-1.0",
        )


def _check_text(checkpoint: Checkpoint, config: dict[str, Any]) -> int:
    """Check that the U-Net takes what the encoders return, and return the width of the pooled embedding."""
    if config.get("addition_embed_type") != "text_time" or config.get("class_embed_type"):
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' does not take sizes and a pooled text, as one of SDXL does.",
            f"addition_embed_type: {config.get('addition_embed_type')}; allowed: text_time",
        )
    width = sum(read_config(checkpoint, part).get("hidden_size", 512) for part in _TEXTS)
    pooled: int = read_config(checkpoint, "text_encoder_2").get("projection_dim", 512)
    embedded = pooled + _N_SIZES * (config.get("addition_time_embed_dim") or 0)
    expected = {
        "cross_attention_dim": (config.get("cross_attention_dim"), width),
        "projection_class_embeddings_input_dim": (config.get("projection_class_embeddings_input_dim"), embedded),
    }
    wrong = [
        f"{name}: {has}, the text encoders give {gives}" for name, (has, gives) in expected.items() if has != gives
    ]
    if wrong:
        raise WeightsMismatch(f"the U-Net of '{checkpoint.name}' does not fit its text encoders.", *wrong)
    return pooled


def _zeros(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))  # the default of the pipeline class


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load both text encoders, VAE encoder, and of the U-Net only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    unet, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part="unet", encoders=[*_TEXTS])
    folder = checkpoint.part("unet").parent
    texts = {
        part: load_clip_text(folder, dtype=options.dtype, encoder=part, tokenizer=tokenizer)
        for part, tokenizer in _TEXTS.items()
    }
    scale = guidance_embedding(read_unet_config(checkpoint, _KIND))
    return Sdxl(unet, vae, texts, scale, side=spec.resolution, zeros=_zeros(checkpoint), prediction=spec.prediction)


class Sdxl(TextUnet):
    """A loaded Stable Diffusion XL checkpoint.

    Args:
        unet, vae, texts, guidance: see `TextUnet`.
        side: image side in pixels, given as original and target size.
        zeros: encode an empty text as zeros.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: VaeEncoder,
        texts: dict[str, ClipTextEncoder],
        guidance: Tensor | None,
        *,
        side: int,
        zeros: bool,
        prediction: PredictionKind,
    ) -> None:
        super().__init__(unet, vae, texts, guidance, prediction=prediction)
        self._zeros = zeros
        self._sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)

    def encode(self, prompts: list[str]) -> Condition:
        """Return the last states but one of both encoders, concatenated, and the second one's pooled embedding."""
        given = [text(prompts, hidden=True) for text in self.texts.values()]
        states, pooled = torch.cat([x.hidden_states[-2] for x in given], dim=-1), given[-1].text_embeds
        if self._zeros:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=states.device)
            states, pooled = states.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the U-Net once."""
        conditioning = {"text_embeds": condition["text_embeds"], "time_ids": self._sizes.expand(len(x_t), -1)}
        return self.run_unet(x_t, timesteps, condition["encoder_hidden_states"], added_cond_kwargs=conditioning)

    def to(self, device: torch.device) -> None:
        """Move all loaded networks, the cached prompts, and the sizes."""
        super().to(device)
        self._sizes = self._sizes.to(device)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    require_parts(checkpoint, "unet", ("vae", *_TEXTS), trained=trained)
    return {
        "denoiser": digest_denoiser(checkpoint, "unet", weights=trained),
        "vae": digest_part(checkpoint.part("vae")),
        **{part: digest_part(checkpoint.part(part)) for part in _TEXTS},
        **{tokenizer: digest_tokenizer(checkpoint.part(tokenizer)) for tokenizer in _TEXTS.values()},
    }


def tiny(path: Path | str, *, seed: int = 0, resolution: int = 32, zeros: bool = True) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        resolution: image side in pixels; the VAE halves it.
        zeros: `force_zeros_for_empty_prompt` of the pipeline.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    widths, pooled = (32, 16), 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=resolution // 2,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            norm_num_groups=8,
            attention_head_dim=8,
            use_linear_projection=True,
            cross_attention_dim=sum(widths),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=pooled + 8 * _N_SIZES,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = tiny_vae(resolution)
        first = tiny_tokenizer(path / "tokenizer")
        second = tiny_tokenizer(path / "tokenizer_2", pad="-</w>")  # the real one pads with another token as well
        encoders = tiny_clip_text(first, width=widths[0]), tiny_clip_text(second, width=widths[1], projection=pooled)
    pipeline: Any = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=first,
        tokenizer_2=second,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        force_zeros_for_empty_prompt=zeros,
    )
    pipeline.save_pretrained(path)
    return path
