"""Sana: a transformer with linear attention over the latents of a deep-compression autoencoder, with cross-attention
to a text encoded by a language model (Xie et al., 2410.10629).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone). Texts are lower-cased and stripped. As in the
pipeline, the language model reads a fixed instruction before every text but the empty one, which is that of the
unconditional pass. A negative text that is not empty gets the instruction too, which the pipeline leaves out.
"""

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.language_models import LanguageModelEncoder, load_gemma2
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_language_model import tiny_gemma2
from diffprobe.backbones.testing.tiny_transformer import tiny_dc
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
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "SanaTransformer2DModel"
_LENGTH = 300
"""Tokens of the text, the pipeline's default."""
_TEXT_ONLY = r"caption_projection(\..*)?|caption_norm|.*\.attn2\.(to_k|to_v|norm_k)"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "SanaPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    sana = describe_denoiser(checkpoint, _KIND)
    config = sana.config
    if config.guidance_embeds:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes the guidance scale, which SanaPipeline does not give it.",
            "allowed: guidance_embeds=false; Sana-Sprint is not supported",
        )
    latents = find_latents(
        checkpoint,
        resolution,
        own=config.sample_size,
        patch=config.patch_size,
        channels=config.in_channels,
        vae="AutoencoderDC",
    )
    text = read_config(checkpoint, "text_encoder").get("hidden_size")
    check_width(checkpoint, "the text encoder", text, config.caption_channels)

    def run(network: nn.Module) -> object:
        return network(
            latents.empty(),
            encoder_hidden_states=torch.empty(1, _LENGTH, config.caption_channels, device="meta"),
            encoder_attention_mask=torch.empty(1, _LENGTH, device="meta"),
            timestep=torch.zeros(1, dtype=torch.long, device="meta"),
            return_dict=False,
        )

    return transformer_spec(
        "sana",
        checkpoint,
        sana,
        latents,
        run=run,
        layout=OutputLayout(size=latents.shape[1:], text_only=_TEXT_ONLY),
        blocks=["transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={
            "text_tokens": _LENGTH,
            "text": "lower case, stripped",
            "instruction": digest_json(_instruction()),
        },
    )


def _instruction() -> str:
    """Return what stands before a text: the default of the pipeline."""
    import diffusers

    lines = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    sana, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    text = load_gemma2(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH)
    return Sana(sana, vae, text, prediction=spec.prediction)


class Sana(TextBackbone):
    """A loaded Sana checkpoint.

    Args:
        prediction: what the transformer predicts.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, text: LanguageModelEncoder, *, prediction: PredictionKind
    ) -> None:
        instruction = _instruction()

        def encode(prompts: list[str]) -> Condition:
            cleaned = [prompt.lower().strip() for prompt in prompts]
            found: dict[str, tuple[Tensor, ...]] = {}
            for group, ahead in (([x for x in cleaned if x], instruction), ([""] if "" in cleaned else [], "")):
                if group:
                    found.update(zip(group, zip(*text(group, instruction=ahead), strict=True), strict=True))
            states, masks = zip(*(found[prompt] for prompt in cleaned), strict=True)
            return {"encoder_hidden_states": torch.stack(states), "encoder_attention_mask": torch.stack(masks)}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        scale = getattr(self.denoiser.config, "timestep_scale", 1.0)
        output = self.denoiser(x_t, timestep=timesteps * scale, **condition, return_dict=False)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0, qk_norm: str | None = None) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        qk_norm: normalisation of queries and keys, `rms_norm_across_heads` in Sana 1.5.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=3,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=24,
            sample_size=16,
            timestep_scale=0.5,
            qk_norm=qk_norm,
        )
        vae = tiny_dc()
        tokenizer, text_encoder = tiny_gemma2(width=24)
    pipeline: Any = diffusers.SanaPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
    )
    pipeline.save_pretrained(path)
    return path
