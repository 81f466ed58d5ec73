"""PixArt-alpha and PixArt-sigma: a transformer over VAE latents, with cross-attention to a T5 text.

Its forward process is variance-preserving; timestep t is on the training grid (0..999), larger is noisier. Texts are
lower-cased and stripped, as in the pipelines. Some checkpoints of alpha are also conditioned on the image size.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_vae
from diffprobe.backbones.text_encoders import T5TextEncoder, load_t5_text
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

_KIND = "PixArtTransformer2DModel"
_LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Tokens of a text, by pipeline."""
_SIZED = 128
"""Latent side of the transformers to which `PixArtAlphaPipeline` gives the image size."""


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") in _LENGTHS


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    pixart = describe_denoiser(checkpoint, _KIND)
    config = pixart.config
    latents = find_latents(
        checkpoint, resolution, own=config.sample_size, patch=config.patch_size, channels=config.in_channels
    )
    width = config.caption_channels or config.cross_attention_dim
    check_width(checkpoint, "the T5 text encoder", read_config(checkpoint, "text_encoder").get("d_model"), width)
    length = _LENGTHS[checkpoint.index["_class_name"]]
    sized = _is_sized(checkpoint, pixart)

    def run(network: nn.Module) -> object:
        return network(
            latents.empty(),
            encoder_hidden_states=torch.empty(1, length, width, device="meta"),
            encoder_attention_mask=torch.empty(1, length, device="meta"),
            timestep=torch.zeros(1, dtype=torch.long, device="meta"),
            added_cond_kwargs=_sizes(latents.empty(), latents.resolution if sized else None),
            return_dict=False,
        )

    conditioning: dict[str, Any] = {"text_tokens": length, "text": "lower case, stripped"}
    if sized:
        conditioning.update(resolution=[latents.resolution] * 2, aspect_ratio=1.0)
    return transformer_spec(
        "pixart",
        checkpoint,
        pixart,
        latents,
        run=run,
        layout=OutputLayout(size=latents.shape[1:], text_only=r"caption_projection(\..*)?|.*\.attn2\.(to_k|to_v)"),
        blocks=["transformer_blocks.*"],
        signature=[length],
        conditioning=conditioning,
    )


def _is_sized(checkpoint: Checkpoint, pixart: Any) -> bool:
    """Return whether the transformer takes the image size.

    Raises: WeightsMismatch where its pipeline does not give it.
    """
    kind = checkpoint.index["_class_name"]
    is_given = kind == "PixArtAlphaPipeline" and pixart.config.sample_size == _SIZED
    if pixart.use_additional_conditions and not is_given:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes the image size, which {kind} does not give it "
            f"(sample_size {pixart.config.sample_size}).",
            f"allowed: PixArtAlphaPipeline with sample_size {_SIZED}, or use_additional_conditions=false",
        )
    return bool(pixart.use_additional_conditions)


def _sizes(x: Tensor, resolution: int | None) -> dict[str, Tensor | None]:
    if resolution is None:
        return {"resolution": None, "aspect_ratio": None}
    size = torch.full((len(x), 2), resolution, dtype=x.dtype, device=x.device)
    return {"resolution": size, "aspect_ratio": torch.ones_like(size[:, :1])}


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    pixart, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    folder, length = checkpoint.part("text_encoder").parent, spec.conditioning["text_tokens"]
    text = load_t5_text(folder, dtype=options.dtype, length=length)
    sized = spec.resolution if "resolution" in spec.conditioning else None
    return PixArt(pixart, vae, text, resolution=sized, prediction=spec.prediction)


class PixArt(TextBackbone):
    """A loaded PixArt checkpoint.

    Args:
        resolution: image side given to the transformer; None if it takes none.
        prediction: what the transformer predicts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: VaeEncoder,
        text: T5TextEncoder,
        *,
        resolution: int | None,
        prediction: PredictionKind,
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            states, mask = text([prompt.lower().strip() for prompt in prompts], masked=True)
            return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)
        self._resolution = resolution

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        sizes = _sizes(x_t, self._resolution)
        output = self.denoiser(x_t, timestep=timesteps, **condition, added_cond_kwargs=sizes, return_dict=False)[0]
        return self.predicted(output, x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0, kind: Literal["alpha", "sigma"] = "alpha", sized: bool = False) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        kind: which pipeline.
        sized: make an alpha that takes the image size; its own resolution is then 256, otherwise 32.
    Returns: `path`.
    """
    import diffusers

    path, side = Path(path), _SIZED if sized else 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=side,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=48,
            caption_channels=32,
        )
        vae = tiny_vae(2 * side, latent_channels=4)
        tokenizer, text_encoder = tiny_t5(path / "tokenizer")
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    made: Any = diffusers.PixArtAlphaPipeline if kind == "alpha" else diffusers.PixArtSigmaPipeline
    pipeline = made(
        transformer=transformer, vae=vae, scheduler=scheduler, tokenizer=tokenizer, text_encoder=text_encoder
    )
    pipeline.save_pretrained(path)
    return path
