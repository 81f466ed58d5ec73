"""FLUX.2: a transformer over image and text tokens, in two streams, then in one; conditioned on a language model.

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone); the transformer takes t/1000, in the precision of
the pass. Latents are those of 2 x 2 places of the VAE, normalised by its batch norm; noise is drawn on them. The shift,
scale and gate of AdaLN are the same for all blocks of a kind.

The text is that of three layers of Mistral 3 behind a system message (`Flux2Pipeline`), or of Qwen 3
(`Flux2KleinPipeline`). Padding is hidden from the language model, and not from the transformer.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.chat_models import ChatEncoder, chat_width, digest_chat_tokenizer, load_chat_model
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_chat_model import tiny_mistral3, tiny_qwen3
from diffprobe.backbones.testing.tiny_transformer import tiny_flux2_vae
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
from diffprobe.core.shapes import FeatureMap

_KIND = "Flux2Transformer2DModel"
_VAE = "AutoencoderKLFlux2"
_OWN_SIDE = 64
"""Tokens on a side of the pipeline's default image; the transformer's config has none."""
_LENGTH = 512
"""Tokens of the text, the pipelines' default."""
_DOUBLE, _SINGLE = r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_TEXT_ONLY = (
    rf"context_embedder|{_DOUBLE}\.(norm1_context|norm2_context|ff_context)(\..*)?"
    rf"|{_DOUBLE}\.attn\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)"
)


@dataclass(frozen=True)
class _Variant:
    """What the pipelines differ in: the layers of the language model, and the guidance scale."""

    layers: tuple[int, ...]
    guidance: float | None


_VARIANTS = {
    "Flux2Pipeline": _Variant((10, 20, 30), 4.0),
    "Flux2KleinPipeline": _Variant((9, 18, 27), None),
}
"""The defaults of each pipeline."""


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _VARIANTS


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    flux = describe_denoiser(checkpoint, _KIND)
    config, variant = flux.config, _VARIANTS[checkpoint.index["_class_name"]]
    latents = find_latents(checkpoint, resolution, own=_OWN_SIDE, patch=1, channels=config.in_channels, vae=_VAE)
    read_config(checkpoint, "text_encoder")
    width = len(variant.layers) * chat_width(checkpoint.part("text_encoder"))
    check_width(checkpoint, f"the text of {len(variant.layers)} layers", width, config.joint_attention_dim)
    guidance = variant.guidance if config.guidance_embeds else None

    def run(network: nn.Module) -> object:
        states = torch.empty(1, _LENGTH, config.joint_attention_dim, device="meta")
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), states, guidance)

    return transformer_spec(
        "flux2",
        checkpoint,
        flux,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_LENGTH,
            joint=rf"{_SINGLE}(\..+)?",
            image_second=_DOUBLE,
            text_only=_TEXT_ONLY,
            heads=rf"({_DOUBLE}|{_SINGLE})\.attn\.norm_[qk]",
            heads_last=True,
            joint_attention=rf"({_DOUBLE}|{_SINGLE})\.attn",
            text_keys_first=True,
        ),
        blocks=["transformer_blocks.*", "single_transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH, "text_layers": list(variant.layers), "guidance": guidance},
    )


def _places(x: FeatureMap, n_text: int) -> tuple[Int[Tensor, "batch tokens 4"], Int[Tensor, "batch text 4"]]:
    """Return time, row, column and number of each token of the image, and of the text."""
    batch, _, height, width = x.shape
    rows, columns, words = (torch.arange(n, device=x.device) for n in (height, width, n_text))
    zero = rows[:1]
    image, text = torch.cartesian_prod(zero, rows, columns, zero), torch.cartesian_prod(zero, zero, zero, words)
    return image.expand(batch, -1, -1), text.expand(batch, -1, -1)


def _run(network: nn.Module, x_t: Tensor, times: Tensor, states: Tensor, guidance: float | None) -> Any:
    """Run the transformer on latents; `times` is in 0..1."""
    image, text = _places(x_t, states.shape[1])
    return network(
        x_t.flatten(2).transpose(1, 2),
        timestep=times,
        guidance=None if guidance is None else torch.full_like(times, guidance, dtype=torch.float32),
        encoder_hidden_states=states,
        img_ids=image,
        txt_ids=text,
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    flux, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    text = load_chat_model(
        checkpoint.part("vae").parent,
        dtype=options.dtype,
        length=_LENGTH,
        layers=spec.conditioning["text_layers"],
    )
    klein = checkpoint.index["_class_name"] == "Flux2KleinPipeline"
    guidance = spec.conditioning["guidance"]
    return Flux2(flux, vae, text, klein=klein, guidance=guidance, prediction=spec.prediction)


class Flux2(TextBackbone):
    """A loaded FLUX.2 checkpoint.

    Args:
        klein: whether the text is that of `Flux2KleinPipeline`.
        guidance: guidance scale given to the transformer; None if it takes none.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: ChatEncoder,
        *,
        klein: bool,
        guidance: float | None,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            return {"states": (_klein_states if klein else _states)(text, prompts)}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)
        self._guidance = guidance

    def embed_guidance(self, scale: float) -> None:
        """Give a transformer with distilled guidance another scale. Raises: ConfigError for one that takes none."""
        if self._guidance is None:
            super().embed_guidance(scale)
        self._guidance = scale

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        times = timesteps.to(x_t.dtype) / 1000
        output = _run(self.denoiser, x_t, times, condition["states"], self._guidance)[0]
        return self.predicted(output.transpose(1, 2).unflatten(2, x_t.shape[2:]), x_t)


def _states(text: ChatEncoder, prompts: list[str]) -> Float[Tensor, "prompt length width"]:
    """Encode prompts behind the system message of `Flux2Pipeline`."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    told = {"role": "system", "content": [{"type": "text", "text": SYSTEM_MESSAGE}]}
    texts = [
        text.render([told, {"role": "user", "content": [{"type": "text", "text": prompt.replace("[IMG]", "")}]}])
        for prompt in prompts
    ]
    start = text.tokenizer.bos_token
    return text.states(texts, special=start is None or not texts[0].startswith(start))


def _klein_states(text: ChatEncoder, prompts: list[str]) -> Float[Tensor, "prompt length width"]:
    """Encode prompts as `Flux2KleinPipeline` does: an answer without thinking is begun."""
    settings = {"add_generation_prompt": True, "enable_thinking": False}
    return text.states([text.render([{"role": "user", "content": prompt}], **settings) for prompt in prompts])


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    found = digest_parts(checkpoint, trained, ["text_encoder"])
    return {**found, "tokenizer": digest_chat_tokenizer(checkpoint.part("tokenizer"))}


def tiny(path: Path | str, *, seed: int = 0, klein: bool = False) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 256; use a smaller one: 32 makes 64 tokens.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        klein: make a `Flux2KleinPipeline`, whose text encoder is a Qwen 3.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=48,
            timestep_guidance_channels=32,
            guidance_embeds=not klein,
            axes_dims_rope=(4, 4, 4, 4),
        )
        vae = tiny_flux2_vae()
        tokenizer, text_encoder = (tiny_qwen3 if klein else tiny_mistral3)(width=16)
    pipeline: Any = getattr(diffusers, "Flux2KleinPipeline" if klein else "Flux2Pipeline")(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
