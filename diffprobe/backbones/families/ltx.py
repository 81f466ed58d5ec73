"""LTX-Video for images: a transformer for video with cross-attention to a text of T5 (2501.00103).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone), and is given to the network as it is. The network is
one for video that gets an image as its only frame, one latent place per token; the autoencoder is causal, encodes that
frame alone and reduces a side by 32. Latents are normalised by channel, with statistics among the weights of the
autoencoder. T5 reads the padding of a text, as in the pipeline; a mask hides it from the image.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Condition, LoadOptions, Prediction
from diffprobe.backbones.latent_backbone import TextBackbone, load_denoiser_and_vae
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import PredictionKind
from diffprobe.backbones.testing.tiny_transformer import tiny_ltx_vae, tiny_t5
from diffprobe.backbones.text_encoders import T5TextEncoder, load_t5_text
from diffprobe.backbones.transformer import (
    PART,
    LatentGrid,
    check_width,
    describe_denoiser,
    digest_parts,
    find_latents,
    transformer_spec,
)
from diffprobe.backbones.vae import VaeEncoder
from diffprobe.backbones.weights import config_file, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "LTXVideoTransformer3DModel"
_OWN_SIDE = 16
"""Latent side of the pipeline's default height; the transformer's config has none."""
_LENGTH = 128
"""Tokens of the text, the pipeline's default."""
_FRAME_RATE = 25
"""Frames per second, the pipeline's default; the time of the only frame is 0 at any rate."""
_BLOCK = r"transformer_blocks\.\d+"
_TEXT_ONLY = rf"rope|caption_projection(\..*)?|{_BLOCK}\.attn2\.(to_k|to_v|norm_k)"
"""Modules that do not see the image."""
Scale = tuple[float, float, float]
"""Of the positions: seconds per latent frame, pixels per latent place in height and width."""


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "LTXPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    ltx = describe_denoiser(checkpoint, _KIND)
    config = ltx.config
    _check_settings(checkpoint, config)
    latents = find_latents(
        checkpoint, resolution, own=_OWN_SIDE, patch=1, channels=config.in_channels, vae="AutoencoderKLLTXVideo"
    )
    width = read_config(checkpoint, "text_encoder").get("d_model")
    check_width(checkpoint, "the T5 text encoder", width, config.caption_channels)
    scale = _scale(checkpoint, latents)

    def run(network: nn.Module) -> object:
        condition = {
            "encoder_hidden_states": torch.empty(1, _LENGTH, config.caption_channels, device="meta"),
            "encoder_attention_mask": torch.empty(1, _LENGTH, device="meta"),
        }
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), condition, scale)

    return transformer_spec(
        "ltx",
        checkpoint,
        ltx,
        latents,
        run=run,
        layout=OutputLayout(size=latents.shape[1:], text_only=_TEXT_ONLY, cross_attention=rf"{_BLOCK}\.attn2"),
        blocks=["transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH},
    )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a token is one latent place of one frame, as LTXPipeline packs them. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    if (config.patch_size, config.patch_size_t) != (1, 1):
        raise WeightsMismatch(
            f"'{where}': patch_size is {config.patch_size}, patch_size_t {config.patch_size_t}.", "allowed: 1 and 1"
        )
    if (config.out_channels or config.in_channels) != config.in_channels:
        raise WeightsMismatch(f"'{where}' takes {config.in_channels} latent channels and gives {config.out_channels}.")


def _scale(checkpoint: Checkpoint, latents: LatentGrid) -> Scale:
    """Return the scale of the positions, as in the pipeline."""
    config = read_config(checkpoint, "vae")
    reduced = config.get("spatio_temporal_scaling", (True, True, True, False))
    frames = config.get("temporal_compression_ratio") or config.get("patch_size_t", 1) * 2 ** sum(reduced)
    places = float(latents.resolution // latents.side)
    return frames / _FRAME_RATE, places, places


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition, scale: Scale) -> Any:
    """Run the transformer on the places of latents as one frame; `times` is in 0..1000."""
    return network(
        x_t.flatten(2).transpose(1, 2),
        timestep=times,
        **condition,
        num_frames=1,
        height=x_t.shape[2],
        width=x_t.shape[3],
        rope_interpolation_scale=scale,
        return_dict=False,
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    ltx, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    text = load_t5_text(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH)
    scale = _scale(checkpoint, LatentGrid(spec.resolution, *spec.latent_shape[:2]))
    return Ltx(ltx, vae, text, scale=scale, prediction=spec.prediction)


class Ltx(TextBackbone):
    """A loaded LTX-Video checkpoint.

    Args:
        scale: of the positions.
        prediction: what the transformer predicts.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, text: T5TextEncoder, *, scale: Scale, prediction: PredictionKind
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            states, mask = text(prompts)
            return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)
        self._scale = scale

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        output = _run(self.denoiser, x_t, timesteps, condition, self._scale)[0]
        return self.predicted(output.transpose(1, 2).unflatten(2, x_t.shape[2:]), x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 64.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=3,
            caption_channels=24,
        )
        vae = tiny_ltx_vae()
        tokenizer, text_encoder = tiny_t5(path / "tokenizer", width=24)
    pipeline: Any = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(path)
    return path
