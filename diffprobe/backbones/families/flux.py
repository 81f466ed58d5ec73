"""FLUX.1: a transformer over image and text tokens, in two streams, then in one; conditioned on CLIP and T5 texts.

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone); the transformer takes t/1000, in the precision of
the pass: bfloat16 rounds it to 8 bits, as in the pipeline. Noise is drawn on the latents, which are then
packed two by two into tokens.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_text import tiny_clip_text, tiny_tokenizer
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import ClipTextEncoder, T5TextEncoder, load_clip_text, load_t5_text
from diffprobe.backbones.transformer import (
    PART,
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

_KIND = "FluxTransformer2DModel"
_OWN_SIDE = 128
"""Default latent side of the pipeline; the transformer's config has none."""
_PACK = 2
"""Latent places per side of a token."""
_GUIDANCE = 3.5
"""The pipeline's default, for checkpoints that guidance was distilled into."""
_LENGTHS = {True: 512, False: 256}
"""Tokens of the T5 text: 512 with guidance (dev), 256 without (schnell), as they were trained."""
_ENCODERS = ["text_encoder", "text_encoder_2"]
_DOUBLE, _SINGLE = r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_TEXT_ONLY = (
    rf"context_embedder|{_DOUBLE}\.(norm1_context|norm2_context|ff_context)(\..*)?"
    rf"|{_DOUBLE}\.attn\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "FluxPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    flux = describe_denoiser(checkpoint, _KIND)
    config = flux.config
    if config.in_channels % _PACK**2:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes {config.in_channels} channels per token.",
            f"allowed: multiples of {_PACK**2}",
        )
    channels = config.in_channels // _PACK**2
    latents = find_latents(checkpoint, resolution, own=_OWN_SIDE, patch=_PACK, channels=channels)
    clip, t5 = (read_config(checkpoint, name) for name in _ENCODERS)
    check_width(checkpoint, "the CLIP text encoder", clip.get("hidden_size"), config.pooled_projection_dim)
    check_width(checkpoint, "the T5 text encoder", t5.get("d_model"), config.joint_attention_dim)
    guidance = _GUIDANCE if config.guidance_embeds else None
    length = _LENGTHS[guidance is not None]

    def run(network: nn.Module) -> object:
        return _run(
            network,
            latents.empty(),
            torch.zeros(1, device="meta"),
            {
                "encoder_hidden_states": torch.empty(1, length, config.joint_attention_dim, device="meta"),
                "pooled_projections": torch.empty(1, config.pooled_projection_dim, device="meta"),
            },
            guidance,
        )

    return transformer_spec(
        "flux",
        checkpoint,
        flux,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=length,
            joint=rf"{_SINGLE}\..+",
            image_second=rf"{_DOUBLE}|{_SINGLE}",
            text_only=_TEXT_ONLY,
            heads=rf"({_DOUBLE}|{_SINGLE})\.attn\.norm_[qk]",
            heads_last=True,
            joint_attention=rf"({_DOUBLE}|{_SINGLE})\.attn",
            text_keys_first=True,
        ),
        blocks=["transformer_blocks.*", "single_transformer_blocks.*"],
        signature=[length],
        conditioning={"t5_tokens": length, "guidance": guidance},
    )


def pack(x: FeatureMap) -> Float[Tensor, "batch tokens width"]:
    """Concatenate the 2 x 2 places of each token of a latent, channel by channel.

    Source: `FluxPipeline._pack_latents` of diffusers.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // _PACK, _PACK, width // _PACK, _PACK)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * _PACK**2)


def unpack(tokens: Float[Tensor, "batch tokens width"], height: int, width: int) -> FeatureMap:
    """Lay tokens out on a latent of `height` x `width` places; the inverse of `pack`."""
    batch, _, packed = tokens.shape
    x = tokens.reshape(batch, height // _PACK, width // _PACK, packed // _PACK**2, _PACK, _PACK)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, packed // _PACK**2, height, width)


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition, guidance: float | None) -> Any:
    """Run the transformer on latents; `times` is in 0..1."""
    rows, columns = (
        torch.arange(size // _PACK, device=x_t.device, dtype=torch.float32).reshape(shape)
        for size, shape in zip(x_t.shape[2:], ((-1, 1), (1, -1)), strict=True)
    )
    places = torch.stack(torch.broadcast_tensors(torch.zeros_like(rows), rows, columns), dim=-1).reshape(-1, 3)
    n_text = condition["encoder_hidden_states"].shape[1]
    return network(
        pack(x_t),
        timestep=times,
        guidance=None if guidance is None else torch.full_like(times, guidance),
        **condition,
        img_ids=places,
        txt_ids=places.new_zeros(n_text, 3),
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoders, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    flux, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=_ENCODERS)
    folder, dtype, conditioning = checkpoint.part("vae").parent, options.dtype, spec.conditioning
    clip = load_clip_text(folder, dtype=dtype)
    t5 = load_t5_text(
        folder, dtype=dtype, length=conditioning["t5_tokens"], encoder="text_encoder_2", tokenizer="tokenizer_2"
    )
    return Flux(flux, vae, clip, t5, guidance=conditioning["guidance"], prediction=spec.prediction)


class Flux(TextBackbone):
    """A loaded FLUX.1 checkpoint.

    Args:
        guidance: guidance scale given to the transformer; None if it takes none.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        clip: ClipTextEncoder,
        t5: T5TextEncoder,
        *,
        guidance: float | None,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            return {"encoder_hidden_states": t5(prompts)[0], "pooled_projections": clip(prompts).pooler_output}

        texts = {"text_encoder": clip, "text_encoder_2": t5}
        super().__init__(denoiser, vae, texts, encode, prediction=prediction)
        self._guidance = guidance

    def embed_guidance(self, scale: float) -> None:
        """Give a transformer with distilled guidance another scale. Raises: ConfigError for one that takes none."""
        if self._guidance is None:
            super().embed_guidance(scale)
        self._guidance = scale

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps.float() / 1000, condition, self._guidance)[0]
        return self.predicted(unpack(output, x_t.shape[2], x_t.shape[3]), x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, _ENCODERS, ["tokenizer", "tokenizer_2"])


def tiny(path: Path | str, *, seed: int = 0, guidance: bool = True) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 256; use a smaller one: 32 makes 64 tokens.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        guidance: whether it takes a guidance scale, as dev does and schnell does not.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        )
        vae = tiny_vae(32, latent_channels=4, shift=0.05, flow=True)
        tokenizer = tiny_tokenizer(path / "tokenizer")
        text_encoder = tiny_clip_text(tokenizer, width=16)
        tokenizer_2, text_encoder_2 = tiny_t5(path / "tokenizer_2")
    pipeline: Any = diffusers.FluxPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
    )
    pipeline.save_pretrained(path)
    return path
