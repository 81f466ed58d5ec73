"""Wan 2.1 and 2.2 for images: a transformer for video with cross-attention to a text of UMT5 (2503.20314).

A flow model: timestep t runs from 0 (clean) to 1000 (noise alone), and is given to the network as it is. The network is
one for video that gets an image as its only frame; the autoencoder is causal and encodes that frame alone. Latents are
normalised by channel.

The states of padding are zeros, as in the pipeline, and the image attends to them: the network has no mask. Wan 2.2
with 5 billion parameters takes a timestep per place (`expand_timesteps`); in text to video all are the same, so the
network gets one per row here. Wan 2.2 with two transformers, one for high and one for low noise, is refused.
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
from diffprobe.backbones.part_config import has_part
from diffprobe.backbones.testing.tiny_transformer import tiny_t5, tiny_wan_vae
from diffprobe.backbones.text_encoders import T5TextEncoder, clean_text, load_t5_text
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
from diffprobe.backbones.weights import config_file, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "WanTransformer3DModel"
_OWN_SIDE = 60
"""Latent side of the pipeline's default height with the autoencoder of 2.1; the transformer's config has none."""
_PATCH = 2
"""Latent places per side of a token."""
_LENGTH = 512
"""Tokens of the text, the pipeline's default."""
_BLOCK = r"blocks\.\d+"
_TEXT_ONLY = rf"rope|condition_embedder(\..*)?|{_BLOCK}\.attn2\.(to_k|to_v|norm_k)"
"""Modules that do not see the image."""


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "WanPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    _check_one_transformer(checkpoint)
    wan = describe_denoiser(checkpoint, _KIND)
    config = wan.config
    _check_settings(checkpoint, config)
    latents = find_latents(
        checkpoint, resolution, own=_OWN_SIDE, patch=_PATCH, channels=config.in_channels, vae="AutoencoderKLWan"
    )
    check_positions(checkpoint, latents, _PATCH * config.rope_max_seq_len)
    width = read_config(checkpoint, "text_encoder").get("d_model")
    check_width(checkpoint, "the text encoder", width, config.text_dim)

    def run(network: nn.Module) -> object:
        states = torch.empty(1, _LENGTH, config.text_dim, device="meta")
        return _run(network, latents.empty(), torch.zeros(1, device="meta"), {"encoder_hidden_states": states})

    return transformer_spec(
        "wan",
        checkpoint,
        wan,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            text_only=_TEXT_ONLY,
            cross_attention=rf"{_BLOCK}\.attn2",
            frame_third="patch_embedding",
        ),
        blocks=["blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH},
    )


def _check_one_transformer(checkpoint: Checkpoint) -> None:
    """Check that one transformer takes all noise levels. Raises: WeightsMismatch."""
    ratio = checkpoint.index.get("boundary_ratio")
    if has_part(checkpoint.index, "transformer_2") or ratio is not None:
        raise WeightsMismatch(
            f"'{checkpoint.name}' has two transformers, as Wan 2.2 A14B has: one for noise from boundary_ratio {ratio} "
            "on, and one for less.",
            "allowed: one transformer for all timesteps, as in Wan 2.1 and Wan 2.2 TI2V-5B",
        )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a transformer takes texts alone, and one frame at a time. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    given = [name for name in ("image_dim", "added_kv_proj_dim") if config[name] is not None]
    if given:
        raise WeightsMismatch(
            f"'{where}' has {', '.join(given)}, of a model that takes images as conditions.", "allowed: text to video"
        )
    if list(config.patch_size) != [1, _PATCH, _PATCH]:
        raise WeightsMismatch(f"'{where}': patch_size is {config.patch_size}.", f"allowed: [1, {_PATCH}, {_PATCH}]")
    if (config.out_channels or config.in_channels) != config.in_channels:
        raise WeightsMismatch(f"'{where}' takes {config.in_channels} latent channels and gives {config.out_channels}.")


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition) -> Any:
    """Run the transformer on latents as one frame; `times` is in 0..1000."""
    return network(x_t[:, :, None], timestep=times, **condition, return_dict=False)


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    wan, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    text = load_t5_text(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH)
    return Wan(wan, vae, text, prediction=spec.prediction)


class Wan(TextBackbone):
    """A loaded Wan checkpoint.

    Args:
        prediction: what the transformer predicts.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, text: T5TextEncoder, *, prediction: PredictionKind
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            states, mask = text([clean_text(prompt) for prompt in prompts], masked=True)
            return {"encoder_hidden_states": states * mask[..., None]}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        return self.predicted(_run(self.denoiser, x_t, timesteps, condition)[0][:, :, 0], x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0, kind: Literal["2.1", "2.2"] = "2.1") -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 120, of a 2.2 240; use a smaller one: 32 makes 64 tokens, of a 2.2 16.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        kind: 2.2 takes a timestep per place and has the autoencoder of Wan 2.2.
    Returns: `path`.
    """
    import diffusers

    path, expanded = Path(path), kind == "2.2"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=48,
            num_layers=3,
            rope_max_seq_len=64,
        )
        vae = tiny_wan_vae(patch=2 if expanded else None)
        tokenizer, text_encoder = tiny_t5(path / "tokenizer", many_languages=True)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline: Any = diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
        expand_timesteps=expanded,
    )
    pipeline.save_pretrained(path)
    return path
