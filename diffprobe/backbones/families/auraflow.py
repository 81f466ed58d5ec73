"""AuraFlow: a transformer over image and text tokens, in two streams, then in one; conditioned on a T5 text.

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone); the transformer takes t/1000, in the precision of
the pass, as in the pipeline. Its text encoder is a UMT5 that does not see padding, and the states of padding are set to
zero. Eight register tokens, which are parameters, stand before the text in every block: they take part in the
attention, and are neither text nor image.
"""

from collections.abc import Collection
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import T5TextEncoder, load_t5_text, t5_tokenizer
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
from diffprobe.core.shapes import FeatureMap

_KIND = "AuraFlowTransformer2DModel"
_OWN_SIDE = 128
"""Default latent side of the pipeline, whatever the `sample_size` of the transformer is."""
_LENGTH = 256
"""Tokens of the text, the pipeline's default."""
_DOUBLE, _SINGLE = r"joint_transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_TEXT_ONLY = (
    rf"context_embedder|{_DOUBLE}\.(norm1_context|norm2_context|ff_context)(\..*)?"
    rf"|{_DOUBLE}\.attn\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)"
)


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "AuraFlowPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    aura = describe_denoiser(checkpoint, _KIND)
    config = aura.config
    most = config.patch_size * isqrt(config.pos_embed_max_size)
    latents = find_latents(
        checkpoint, resolution, own=min(_OWN_SIDE, most), patch=config.patch_size, channels=config.in_channels
    )
    check_positions(checkpoint, latents, most)
    t5 = read_config(checkpoint, "text_encoder")
    check_width(checkpoint, "the T5 text encoder", t5.get("d_model"), config.joint_attention_dim)
    n_registers = aura.register_tokens.shape[1]

    def run(network: nn.Module) -> object:
        return network(
            latents.empty(),
            encoder_hidden_states=torch.empty(1, _LENGTH, config.joint_attention_dim, device="meta"),
            timestep=torch.zeros(1, device="meta"),
            return_dict=False,
        )

    return transformer_spec(
        "auraflow",
        checkpoint,
        aura,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=n_registers + _LENGTH,
            n_registers=n_registers,
            joint=rf"{_SINGLE}(\..+)?",
            image_second=_DOUBLE,
            text_only=_TEXT_ONLY,
            heads=rf"({_DOUBLE}|{_SINGLE})\.attn\.norm_[qk]",
            heads_last=True,
            joint_attention=rf"({_DOUBLE}|{_SINGLE})\.attn",
            text_keys_first=True,
        ),
        blocks=["joint_transformer_blocks.*", "single_transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"t5_tokens": _LENGTH, "padding": "zeros"},
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    aura, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    words = t5_tokenizer(checkpoint.index, "tokenizer")
    text = load_t5_text(checkpoint.part("text_encoder").parent, dtype=options.dtype, length=_LENGTH, words=words)
    return AuraFlow(aura, vae, text, prediction=spec.prediction)


class AuraFlow(TextBackbone):
    """A loaded AuraFlow checkpoint.

    Args:
        prediction: what the transformer predicts.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, text: T5TextEncoder, *, prediction: PredictionKind
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            states, mask = text(prompts, masked=True)
            return {"encoder_hidden_states": states * mask[..., None]}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        times = (timesteps.float() / 1000).to(x_t.dtype)
        output = self.denoiser(x_t, timestep=times, **condition, return_dict=False)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 96, the most that its table of positions has room for.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            pos_embed_max_size=24**2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            caption_projection_dim=32,
        )
        with torch.no_grad():  # most of the text is zeros: what is left would hardly reach the image
            for name, weight in transformer.named_parameters():
                if name.endswith(("add_v_proj.weight", "norm1.linear.weight", "norm1_context.linear.weight")):
                    weight.mul_(10)
        vae = tiny_vae(32, latent_channels=4)
        tokenizer, text_encoder = tiny_t5(path / "tokenizer", many_languages=True)
    pipeline: Any = diffusers.AuraFlowPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
