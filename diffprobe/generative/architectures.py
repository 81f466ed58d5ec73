"""The networks and the forward process of a small latent text-to-image model. Owns their shape; what they learn is
`training.denoiser`'s."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.text_encoders import require_vocabulary
from diffprobe.backbones.weights import SHIPPED, locate, require_files, weight_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing

LEAST_ENTRIES = 514
"""Entries that every caption vocabulary has: all bytes, alone and at a word's end, and two special ones."""


@dataclass(frozen=True, kw_only=True)
class DenoiserShape:
    """Shape of the U-Net and of the text encoder."""

    channels: tuple[int, ...] = (96, 112, 88)
    """U-Net channels a level; each level but the last halves the side."""
    cross_attention: tuple[bool, ...] = (True, True, False)
    """Which levels read the caption; the mid block always does."""
    layers_per_block: int = 1
    """Residual blocks a level on the way down; one more on the way up."""
    heads: int = 8
    """Attention heads in the U-Net."""
    norm_groups: int = 8
    """Groups of GroupNorm."""
    dropout: float = 0.0
    """Share of the residual blocks' activations that training leaves out."""
    text_width: int = 256
    """Width of the text encoder."""
    text_layers: int = 3
    """Layers of the text encoder."""
    text_heads: int = 8
    """Attention heads in the text encoder."""
    vocab_size: int = 4096
    """Entries of the caption vocabulary at most: few captions have fewer."""
    max_tokens: int = 32
    """Longest caption in tokens."""


@dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """The forward process (names as in diffusers' schedulers)."""

    num_train_timesteps: int = 1000
    """Timesteps of the training grid."""
    beta_start: float = 0.00085
    """First beta."""
    beta_end: float = 0.012
    """Last beta."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """How betas run between the two."""

    def scheduler(self) -> Any:
        """Make diffusers' DDIMScheduler of it, which predicts the noise."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )


def _block_types(shape: DenoiserShape) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name diffusers' blocks on the way down and on the way up."""
    down = tuple("CrossAttnDownBlock2D" if reads else "DownBlock2D" for reads in shape.cross_attention)
    return down, tuple("CrossAttnUpBlock2D" if reads else "UpBlock2D" for reads in shape.cross_attention[::-1])


def make_unet(shape: DenoiserShape, *, latent_channels: int, latent_side: int, seed: int) -> Any:
    """Make a diffusers UNet2DConditionModel with random weights; the global generator stays as it was.

    Args:
        shape: of U-Net and text encoder.
        latent_channels: channels of a vae_latent.
        latent_side: its height and width.
        seed: of all weights.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    down, up = _block_types(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(
            sample_size=latent_side,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=shape.channels,
            layers_per_block=shape.layers_per_block,
            cross_attention_dim=shape.text_width,
            attention_head_dim=shape.heads,  # diffusers reads it as the number of heads
            norm_num_groups=shape.norm_groups,
            # Beside the cross-attention the whole caption is added to the timestep's embedding, so that what holds for
            # the whole image (style, skin tone) is learnt within the first epochs.
            addition_embed_type="text",
            addition_embed_type_num_heads=shape.text_heads,
            dropout=shape.dropout,
        )
        # The fused attention's bf16 backward takes more than half of a step on a CPU at these head widths; the plain
        # one computes the same function, and what is saved does not know of it.
        unet.set_attn_processor(AttnProcessor())
    return unet


def make_text_encoder(shape: DenoiserShape, *, tokenizer: Any, seed: int) -> Any:
    """Make a transformers CLIPTextModel with random weights; the global generator stays as it was.

    Args:
        shape: of U-Net and text encoder.
        tokenizer: whose vocabulary it embeds.
        seed: of all weights.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(
            CLIPTextConfig(
                attn_implementation="eager",  # type: ignore[call-arg]  # a keyword of every config
                vocab_size=len(tokenizer),
                hidden_size=shape.text_width,
                intermediate_size=4 * shape.text_width,
                num_hidden_layers=shape.text_layers,
                num_attention_heads=shape.text_heads,
                max_position_embeddings=shape.max_tokens,
                projection_dim=shape.text_width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def weights_folder(name: str) -> Path:
    """Return the folder of trained weights: a shipped checkpoint (emoji-sd) by its name, any other by its path."""
    return (locate(name).folder if name in SHIPPED else None) or Path(name)


def require_autoencoder(name: str) -> Path:
    """Return the folder of a trained AutoencoderKL, given by its path or as a shipped checkpoint whose VAE it is.

    Raises: WeightsMissing.
    """
    folder = weights_folder(name) / ("vae" if name in SHIPPED else "")
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise WeightsMissing(
            f"'{name}' holds no autoencoder (config.json and safetensors weights).",
            fix="autoencoder=emoji-sd for the shipped one; or diffprobe train experiment=emoji/train_autoencoder, then "
            "autoencoder=RUN_FOLDER/weights",
        )
    return folder


def require_text_encoder(folder: Path) -> None:
    """Check that a folder has a text encoder and its words. Raises: WeightsMissing."""
    require_files(folder / "text_encoder")
    require_vocabulary(folder)


def open_unet(folder: Path, shape: DenoiserShape) -> Any:
    """Open the U-Net of a trained pipeline, in float32, to train it further with the dropout of `shape`.

    Raises: WeightsMissing without it; WeightsMismatch if it is of another shape.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    require_files(folder / "unet")
    with quiet_libraries():
        unet: Any = UNet2DConditionModel.from_pretrained(
            folder / "unet", local_files_only=True, use_safetensors=True, dropout=shape.dropout
        )
    config = unet.config
    found = {
        "channels": tuple(config.block_out_channels),
        "cross_attention": _reading_levels(config),
        "layers_per_block": _one(config.layers_per_block),
        "heads": _one(config.num_attention_heads or config.attention_head_dim),
        "norm_groups": config.norm_num_groups,
        "text_width": _one(config.cross_attention_dim),
    }
    if config.addition_embed_type == "text":
        found["text_heads"] = config.addition_embed_type_num_heads
    _require_shape(folder, found, shape)
    unet.set_attn_processor(AttnProcessor())  # as in make_unet
    return unet.float().train()


def open_text_encoder(folder: Path, shape: DenoiserShape) -> tuple[Any, Any]:
    """Open the tokenizer and text encoder of a folder, in float32, to train the latter further.

    Raises: WeightsMissing without the two parts; WeightsMismatch if they are of another shape.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    require_text_encoder(folder)
    with quiet_libraries():
        text_encoder: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True, attn_implementation="eager"
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    config = text_encoder.config
    found = {
        "text_width": config.hidden_size,
        "text_layers": config.num_hidden_layers,
        "text_heads": config.num_attention_heads,
        "max_tokens": config.max_position_embeddings,
    }
    if len(tokenizer) > max(shape.vocab_size, LEAST_ENTRIES):  # fewer are what few captions give
        found["vocab_size"] = len(tokenizer)
    _require_shape(folder, found, shape)
    return tokenizer, text_encoder.float().train()


def require_schedule(folder: Path, noise: BetaSchedule) -> None:
    """Check that a trained pipeline predicts the noise of the forward process that is asked for.

    Raises: WeightsMissing without its scheduler; WeightsMismatch if the U-Net learnt under another one.
    """
    from diffusers import DDIMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise WeightsMissing(
            f"'{folder}' has no scheduler/scheduler_config.json, so it does not say under which noise it was trained.",
            fix="save it again with save_pretrained(FOLDER)",
        )
    with quiet_libraries():
        found: Any = DDIMScheduler.from_config(json.loads(path.read_text("utf-8")))
    asked = noise.scheduler()
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    other = [key for key in keys if found.config[key] != asked.config[key]]
    lines = [f"{key}: found {found.config[key]}, this run has {asked.config[key]}" for key in other]
    if not lines and not torch.equal(found.alphas_cumprod, asked.alphas_cumprod):
        lines = ["its betas are others than these keys make: trained_betas or rescale_betas_zero_snr"]
    if lines:
        raise WeightsMismatch(
            f"'{folder}' was trained under another forward process.",
            *lines,
            fix="set noise.* to what was found; only prediction_type=epsilon and betas by a formula are trained",
        )


def _reading_levels(config: Any) -> object:
    """Return `cross_attention` of a U-Net's config; the names of its blocks where they are none of ours."""
    reads = tuple(name.startswith("CrossAttn") for name in config.down_block_types)
    names = tuple(config.down_block_types), tuple(config.up_block_types)
    return reads if names == _block_types(DenoiserShape(cross_attention=reads)) else names


def _one(value: Any) -> object:
    """Return the one value of what a config may give by level, or all of them where they differ."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values[0] if len(set(values)) == 1 else values


def _require_shape(folder: Path, found: Mapping[str, object], asked: DenoiserShape) -> None:
    other = [key for key, value in found.items() if value != getattr(asked, key)]
    if other:
        raise WeightsMismatch(
            f"'{folder}' holds networks of another shape.",
            *(f"{key}: found {found[key]}, model.{key} says {getattr(asked, key)}" for key in other),
            fix=f"set {', '.join(f'model.{key}' for key in other)} to what was found",
        )
