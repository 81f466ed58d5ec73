"""Stable Diffusion 3 and 3.5: a transformer over two streams of image and text tokens, conditioned on two CLIP texts
and a T5 text.

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone), and the transformer takes t itself. The tokens
of both CLIPs come before those of T5; a checkpoint without T5 has zeros in their place, as in the pipeline.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.part_config import has_part
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import ClipTextEncoder, T5TextEncoder, TextEncoder, load_clip_text, load_t5_text
from diffprobe.backbones.transformer import (
    PART,
    check_positions,
    check_width,
    describe_denoiser,
    digest_parts,
    find_latents,
    transformer_spec,
)
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weights import read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "SD3Transformer2DModel"
_T5_LENGTH = 256
"""Tokens of the T5 text, the pipeline's default."""
_BLOCK = r"transformer_blocks\.\d+"
_TEXT_ONLY = (
    rf"context_embedder|{_BLOCK}\.(norm1_context|norm2_context|ff_context)(\..*)?"
    rf"|{_BLOCK}\.attn\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "StableDiffusion3Pipeline"


def _has_t5(checkpoint: Checkpoint) -> bool:
    return has_part(checkpoint.index, "text_encoder_3")


def _encoders(checkpoint: Checkpoint) -> list[str]:
    return ["text_encoder", "text_encoder_2", *(["text_encoder_3"] if _has_t5(checkpoint) else [])]


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    sd3 = describe_denoiser(checkpoint, _KIND)
    config = sd3.config
    latents = find_latents(
        checkpoint, resolution, own=config.sample_size, patch=config.patch_size, channels=config.in_channels
    )
    check_positions(checkpoint, latents, config.pos_embed_max_size * config.patch_size)
    n_clip = _check_texts(checkpoint, config)

    def run(network: nn.Module) -> object:
        return network(
            latents.empty(),
            encoder_hidden_states=torch.empty(1, n_clip + _T5_LENGTH, config.joint_attention_dim, device="meta"),
            pooled_projections=torch.empty(1, config.pooled_projection_dim, device="meta"),
            timestep=torch.zeros(1, dtype=torch.long, device="meta"),
            return_dict=False,
        )

    return transformer_spec(
        "sd3",
        checkpoint,
        sd3,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=n_clip + _T5_LENGTH,
            image_second=_BLOCK,
            text_only=_TEXT_ONLY,
            heads=rf"{_BLOCK}\.attn2?\.norm_[qk]",
            joint_attention=rf"{_BLOCK}\.attn",
        ),
        blocks=["transformer_blocks.*"],
        signature=[n_clip],
        conditioning={"clip_tokens": n_clip, "t5_tokens": _T5_LENGTH, "t5": "text" if _has_t5(checkpoint) else "zeros"},
    )


def _check_texts(checkpoint: Checkpoint, config: Any) -> int:
    """Check that the text encoders fit the transformer; return the number of CLIP tokens. Raises: WeightsMismatch."""
    clips = [read_config(checkpoint, name) for name in ("text_encoder", "text_encoder_2")]
    pooled = sum(clip.get("projection_dim", 0) for clip in clips)
    check_width(checkpoint, "the pooled text of both CLIPs", pooled, config.pooled_projection_dim)
    width = sum(clip.get("hidden_size", 0) for clip in clips)
    if width > config.joint_attention_dim:
        raise WeightsMismatch(
            f"the texts of both CLIPs of '{checkpoint.name}' are {width} wide, its transformer takes at most "
            f"{config.joint_attention_dim}."
        )
    if _has_t5(checkpoint):
        t5 = read_config(checkpoint, "text_encoder_3").get("d_model")
        check_width(checkpoint, "the T5 text encoder", t5, config.joint_attention_dim)
    return int(clips[0].get("max_position_embeddings", 77))


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoders, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    sd3, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=_encoders(checkpoint))
    folder, dtype = checkpoint.part("vae").parent, options.dtype
    clips = [
        load_clip_text(folder, dtype=dtype, encoder=f"text_encoder{end}", tokenizer=f"tokenizer{end}")
        for end in ("", "_2")
    ]
    t5 = None
    if _has_t5(checkpoint):
        t5 = load_t5_text(folder, dtype=dtype, length=_T5_LENGTH, encoder="text_encoder_3", tokenizer="tokenizer_3")
    width = read_config(checkpoint, "transformer").get("joint_attention_dim", 4096)
    return Sd3(sd3, vae, clips, t5, width=width, prediction=spec.prediction)


class Sd3(TextBackbone):
    """A loaded Stable Diffusion 3 checkpoint.

    Args:
        clips: both CLIPs.
        t5: None if the checkpoint has none.
        width: of the text tokens that the transformer takes.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        clips: list[ClipTextEncoder],
        t5: T5TextEncoder | None,
        *,
        width: int,
        prediction: PredictionKind,
    ) -> None:
        clips[1].length = clips[0].length  # the pipeline truncates and pads both to the length of the first

        def encode(prompts: list[str]) -> Condition:
            outputs = [clip(prompts, hidden=True) for clip in clips]
            clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
            zeros = clip.new_zeros(len(prompts), _T5_LENGTH, width)
            tokens = [pad(clip, (0, width - clip.shape[-1])), zeros if t5 is None else t5(prompts)[0]]
            pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
            return {"encoder_hidden_states": torch.cat(tokens, dim=1), "pooled_projections": pooled}

        texts: dict[str, TextEncoder] = {"text_encoder": clips[0], "text_encoder_2": clips[1]}
        if t5 is not None:
            texts["text_encoder_3"] = t5
        super().__init__(denoiser, vae, texts, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = self.denoiser(x_t, timestep=timesteps, **condition, return_dict=False)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    encoders = _encoders(checkpoint)
    return digest_parts(checkpoint, trained, encoders, [name.replace("text_encoder", "tokenizer") for name in encoders])


def tiny(path: Path | str, *, seed: int = 0, t5: bool = True, clip_tokens: int = 24) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its first block has a second attention, as in 3.5 medium, and queries and keys are normalised, as in all of 3.5.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        t5: whether it has a T5.
        clip_tokens: tokens of the CLIP texts.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    parts: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16,
            pos_embed_max_size=24,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=48,
            caption_projection_dim=32,
            pooled_projection_dim=20,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = tiny_vae(32, latent_channels=4, shift=0.05, flow=True)
        for end, width, projection in (("", 16, 8), ("_2", 24, 12)):
            tokenizer = tiny_tokenizer(path / f"tokenizer{end}")
            tokenizer.model_max_length = clip_tokens
            parts[f"tokenizer{end}"] = tokenizer
            parts[f"text_encoder{end}"] = tiny_clip_text(tokenizer, width=width, projection=projection)
        parts["tokenizer_3"], parts["text_encoder_3"] = tiny_t5(path / "tokenizer_3", width=48) if t5 else (None, None)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline: Any = diffusers.StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **parts)
    pipeline.save_pretrained(path)
    return path
