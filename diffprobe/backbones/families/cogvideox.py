"""CogVideoX for images: a transformer for video over image and text tokens, conditioned on T5 (2408.06072).

Its forward process is variance-preserving with a shifted signal-to-noise ratio; timestep t is on the training grid
(0..999), larger is noisier, and the last one is noise alone. The network is one for video that gets an image as its
only frame; the autoencoder is causal and encodes that frame alone. Padding of a text is not hidden: image and text
attend to it, and T5 itself reads it, as in the pipeline.

CogVideoX 1.5 joins two frames to a token, and its pipeline adds a second one to a single one. It is refused.
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
from diffprobe.backbones.testing.tiny_transformer import tiny_cogvideox_vae, tiny_t5
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
from diffprobe.backbones.weights import config_file, read_config
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.shapes import FeatureMap

_KIND = "CogVideoXTransformer3DModel"
_LENGTH = 226
"""Tokens of the text, the pipeline's default."""
_BLOCK = r"transformer_blocks\.\d+"
_JOINT = rf"patch_embed|embedding_dropout|{_BLOCK}\.(ff(\..+)?|attn1\.(to_[qkv]|norm_[qk]|to_out\.\d+))"


def matches(index: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of this family, by its `model_index.json`."""
    return index.get("_class_name") == "CogVideoXPipeline"


def spec(checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    cog = describe_denoiser(checkpoint, _KIND)
    config = cog.config
    _check_settings(checkpoint, config)
    latents = find_latents(
        checkpoint,
        resolution,
        own=config.sample_height,
        patch=config.patch_size,
        channels=config.in_channels,
        vae="AutoencoderKLCogVideoX",
    )
    width = read_config(checkpoint, "text_encoder").get("d_model")
    check_width(checkpoint, "the T5 text encoder", width, config.text_embed_dim)

    def run(network: nn.Module) -> object:
        states = torch.empty(1, _LENGTH, config.text_embed_dim, device="meta")
        times = torch.zeros(1, dtype=torch.long, device="meta")
        return _run(network, latents.empty(), times, {"encoder_hidden_states": states}, config)

    return transformer_spec(
        "cogvideox",
        checkpoint,
        cog,
        latents,
        run=run,
        layout=OutputLayout(
            size=latents.shape[1:],
            n_text=_LENGTH,
            joint=_JOINT,
            text_second=_BLOCK,
            text_only=r"patch_embed\.text_proj",
            heads=rf"{_BLOCK}\.attn1\.norm_[qk]",
            joint_attention=rf"{_BLOCK}\.attn1",
            text_keys_first=True,
        ),
        blocks=["transformer_blocks.*"],
        signature=[_LENGTH],
        conditioning={"text_tokens": _LENGTH},
    )


def _check_settings(checkpoint: Checkpoint, config: Any) -> None:
    """Check that a transformer takes texts alone, and one frame at a time. Raises: WeightsMismatch."""
    where = config_file(checkpoint, PART)
    if config.patch_size_t is not None:
        raise WeightsMismatch(
            f"'{where}': patch_size_t is {config.patch_size_t}; a token is of several frames, as in CogVideoX 1.5, and"
            " one image cannot be read alone.",
            "allowed: null, as in CogVideoX 1.0 (2b, 5b)",
        )
    given = [name for name in ("use_learned_positional_embeddings", "ofs_embed_dim") if config[name]]
    if given:
        raise WeightsMismatch(
            f"'{where}' has {', '.join(given)}, of a model that takes images as conditions.", "allowed: text to video"
        )
    if config.max_text_seq_length != _LENGTH:
        raise WeightsMismatch(
            f"'{where}' takes texts of {config.max_text_seq_length} tokens.",
            f"allowed: {_LENGTH}, which CogVideoXPipeline gives it",
        )
    if (config.out_channels or config.in_channels) != config.in_channels:
        raise WeightsMismatch(f"'{where}' takes {config.in_channels} latent channels and gives {config.out_channels}.")


Turns = tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"]]
"""Cosines and sines by which the queries and keys of the image are turned."""


def _positions(x: Tensor, config: Any) -> Turns | None:
    """Return the rotary embedding of the tokens of one frame, their grid scaled to the own size; None without one."""
    if not config.use_rotary_positional_embeddings:
        return None  # its positions are added to the tokens by the network
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    p = config.patch_size
    grid = (x.shape[2] // p, x.shape[3] // p)
    crop = get_resize_crop_region_for_grid(grid, config.sample_width // p, config.sample_height // p)
    found: Any = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim, crops_coords=crop, grid_size=grid, temporal_size=1, device=x.device
    )
    cos, sin = found
    return cos, sin


def _run(network: nn.Module, x_t: Tensor, times: Tensor, condition: Condition, config: Any) -> Any:
    """Run the transformer on latents as one frame; `times` are on the training grid."""
    return network(
        x_t[:, None], timestep=times, **condition, image_rotary_emb=_positions(x_t, config), return_dict=False
    )


def load(checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the transformer only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    cog, vae = load_denoiser_and_vae(checkpoint, spec, needed, options, part=PART, encoders=["text_encoder"])
    text = load_t5_text(checkpoint.part("vae").parent, dtype=options.dtype, length=_LENGTH)
    return CogVideoX(cog, vae, text, prediction=spec.prediction)


class CogVideoX(TextBackbone):
    """A loaded CogVideoX checkpoint.

    Args:
        prediction: what the transformer predicts.
    """

    def __init__(
        self, denoiser: nn.Module, vae: VaeEncoder, text: T5TextEncoder, *, prediction: PredictionKind
    ) -> None:
        def encode(prompts: list[str]) -> Condition:
            return {"encoder_hidden_states": text(prompts)[0]}

        super().__init__(denoiser, vae, {"text_encoder": text}, encode, prediction=prediction)

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Run the transformer once."""
        network: Any = self.denoiser
        return self.predicted(_run(network, x_t, timesteps, condition, network.config)[0][:, 0], x_t)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    return digest_parts(checkpoint, trained, ["text_encoder"], ["tokenizer"])


def tiny(path: Path | str, *, seed: int = 0, rotary: bool = True) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Its own resolution is 32.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        rotary: turn queries and keys by place, as in the 5b; else positions are added to the tokens, as in the 2b.
    Returns: `path`.
    """
    import diffusers

    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer: Any = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=24,
            text_embed_dim=32,
            num_layers=3,
            sample_width=24,
            sample_height=16,
            sample_frames=5,
            use_rotary_positional_embeddings=rotary,
        )
        for name, weight in transformer.named_parameters():
            if name.endswith(("norm1.norm.weight", "norm1.norm.bias")):
                nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.3)  # else they change nothing
        vae = tiny_cogvideox_vae()
        tokenizer, text_encoder = tiny_t5(path / "tokenizer")
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        snr_shift_scale=1.0 if rotary else 3.0,
    )
    pipeline: Any = diffusers.CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
    )
    pipeline.save_pretrained(path)
    return path
