"""The networks and the noise schedule of a small latent text-to-image model: building, opening, and shape checks.

Training is in `denoiser.py` and `text_encoder.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_network
from diffprobe.backbones.locate import SHIPPED, locate
from diffprobe.backbones.noise import make_schedule
from diffprobe.backbones.part_config import network_settings, read_part_config
from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import load_transformer
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming
from diffprobe.generative.objectives.base import PredictionType

MIN_VOCABULARY = 514
"""Smallest caption vocabulary: all 256 bytes, alone and at the end of a word, and two special tokens."""


@dataclass(frozen=True, kw_only=True)
class DenoiserShape:
    """Shape of the U-Net and of the text encoder."""

    channels: tuple[int, ...] = (96, 112, 88)
    """U-Net channels per level; each level but the last halves the side length."""
    cross_attention: tuple[bool, ...] = (True, True, False)
    """Levels with cross-attention to the caption; the mid block always has it."""
    layers_per_block: int = 1
    """Residual blocks per level in the down path; the up path has one more."""
    heads: int = 8
    """Attention heads in the U-Net."""
    norm_groups: int = 8
    """Groups of each GroupNorm."""
    dropout: float = 0.0
    """Dropout probability in the residual blocks, 0..1."""
    text_width: int = 256
    """Width of the text encoder."""
    text_layers: int = 3
    """Layers of the text encoder."""
    text_heads: int = 8
    """Attention heads in the text encoder."""
    vocab_size: int = 4096
    """Largest number of vocabulary entries; a small set of captions yields fewer."""
    max_tokens: int = 32
    """Maximum caption length in tokens."""


@dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """Noise schedule of the forward process (field names as in diffusers' schedulers)."""

    num_train_timesteps: int = 1000
    """Timesteps of the training grid."""
    beta_start: float = 0.00085
    """First beta."""
    beta_end: float = 0.012
    """Last beta."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    """Interpolation between the two."""

    def scheduler(self, prediction_type: PredictionType = "epsilon") -> Any:
        """Build diffusers' DDIMScheduler for a network with the given kind of prediction."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        )


def _block_types(shape: DenoiserShape) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return diffusers' block names of the down and the up path."""
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.cross_attention)
    return down, tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in shape.cross_attention[::-1])


def make_unet(shape: DenoiserShape, *, latent_channels: int, latent_side: int, seed: int) -> Any:
    """Build a diffusers UNet2DConditionModel with random weights; the global random state is unchanged.

    Args:
        shape: shape of the U-Net and the text encoder.
        latent_channels: channels of a vae_latent.
        latent_side: height and width of a vae_latent.
        seed: seed of all weights.
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
            # The pooled caption is added to the timestep embedding, besides the cross-attention, so that attributes of
            # the whole image (style, skin tone) are learnt within the first epochs.
            addition_embed_type="text",
            addition_embed_type_num_heads=shape.text_heads,
            dropout=shape.dropout,
        )
        # At these head widths the bf16 backward pass of the fused attention takes more than half of a CPU step. The
        # plain processor computes the same function and is not part of the saved weights.
        unet.set_attn_processor(AttnProcessor())
    return unet


def make_text_encoder(shape: DenoiserShape, *, tokenizer: Any, seed: int) -> Any:
    """Build a transformers CLIPTextModel with random weights; the global random state is unchanged.

    Args:
        shape: shape of the U-Net and the text encoder.
        tokenizer: tokenizer whose vocabulary is embedded.
        seed: seed of all weights.
    """
    from transformers import CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(
            clip_text_config(
                width=shape.text_width, layers=shape.text_layers, heads=shape.text_heads, max_tokens=shape.max_tokens,
                tokenizer=tokenizer,
            )
        )  # fmt: skip


def clip_text_config(*, width: int, layers: int, heads: int, max_tokens: int, tokenizer: Any) -> Any:
    """Return the transformers CLIPTextConfig of a small text encoder.

    Args:
        width: width of the states, and of the pooled embedding if there is one.
        layers: transformer layers.
        heads: attention heads.
        max_tokens: maximum caption length in tokens.
        tokenizer: tokenizer whose vocabulary is embedded.
    """
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        attn_implementation="eager",  # type: ignore[call-arg]  # accepted by every config
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_tokens,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def weights_folder(name: str) -> Path:
    """Return the folder of trained weights: a shipped checkpoint (emoji-sd) by name, any other by path."""
    return (locate(name).folder if name in SHIPPED else None) or Path(name)


def require_autoencoder(name: str) -> Path:
    """Return the folder of a trained AutoencoderKL, given by path or by the name of a shipped checkpoint.

    Raises: WeightsMissing.
    """
    folder = weights_folder(name) / ("vae" if name in SHIPPED else "")
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise WeightsMissing(
            f"'{name}' does not contain an autoencoder (config.json and safetensors weights).",
            fix="autoencoder=emoji-sd for the shipped one; or diffprobe train experiment=emoji/train_autoencoder, then "
            "autoencoder=RUN_FOLDER/weights",
        )
    return folder


def require_text_encoder(folder: Path) -> None:
    """Check that a folder contains a text encoder and its vocabulary. Raises: WeightsMissing."""
    require_files(folder / "text_encoder")
    require_vocabulary(folder)


def open_unet(folder: Path, shape: DenoiserShape) -> Any:
    """Open the U-Net of a trained pipeline in float32 for further training with the dropout of `shape`.

    Raises: WeightsMissing without a U-Net; WeightsMismatch if its shape differs.
    """
    from diffusers.models.attention_processor import AttnProcessor

    unet = load_network("UNet2DConditionModel", folder / "unet", dropout=shape.dropout)
    config = unet.config
    found = {
        "channels": tuple(config.block_out_channels),
        "cross_attention": _attention_levels(config),
        "layers_per_block": _common_value(config.layers_per_block),
        "heads": _common_value(config.num_attention_heads or config.attention_head_dim),
        "norm_groups": config.norm_num_groups,
        "text_width": _common_value(config.cross_attention_dim),
    }
    if config.addition_embed_type == "text":
        found["text_heads"] = config.addition_embed_type_num_heads
    _require_shape(folder, found, shape)
    unet.set_attn_processor(AttnProcessor())  # as in make_unet
    return unet.train()


def open_text_encoder(folder: Path, shape: DenoiserShape) -> tuple[Any, Any]:
    """Open the tokenizer and the text encoder of a folder, the latter in float32 for further training.

    Raises: WeightsMissing without either part; WeightsMismatch if their shape differs.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    require_text_encoder(folder)
    text_encoder = load_transformer(CLIPTextModel, folder / "text_encoder", dtype=torch.float32, attention="eager")
    tokenizer = load_tokenizer(CLIPTokenizer, folder / "tokenizer")
    config = text_encoder.config
    found = {
        "text_width": config.hidden_size,
        "text_layers": config.num_hidden_layers,
        "text_heads": config.num_attention_heads,
        "max_tokens": config.max_position_embeddings,
    }
    if len(tokenizer) > max(shape.vocab_size, MIN_VOCABULARY):  # a small set of captions yields fewer
        found["vocab_size"] = len(tokenizer)
    _require_shape(folder, found, shape)
    return tokenizer, text_encoder.requires_grad_(True).train()


def require_schedule(folder: Path, noise: BetaSchedule, prediction_type: PredictionType = "epsilon") -> None:
    """Check that a pipeline was trained on the given forward process, with the given kind of prediction.

    Raises: WeightsMissing without a scheduler; WeightsMismatch if either differs.
    """
    from diffusers import DDIMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    if not path.exists():
        raise WeightsMissing(
            f"'{folder}' has no scheduler/scheduler_config.json, so its noise schedule is unknown.",
            fix="save it again with save_pretrained(FOLDER)",
        )
    settings = network_settings(read_part_config(path, non_finite=True))
    make_schedule(settings, where=path)  # its checks
    with naming(path, "a configuration of DDIMScheduler"), quiet_libraries():
        found: Any = DDIMScheduler.from_config(settings)
    asked = noise.scheduler(prediction_type)
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    other = [key for key in keys if found.config[key] != asked.config[key]]
    lines = [f"{key}: found {found.config[key]}, this run has {asked.config[key]}" for key in other]
    if not lines and not torch.equal(found.alphas_cumprod, asked.alphas_cumprod):
        lines = ["its betas do not follow from these keys: trained_betas or rescale_betas_zero_snr is set"]
    if lines:
        raise WeightsMismatch(
            f"'{folder}' was trained with another forward process or prediction.",
            *lines,
            fix="set noise.* to the values found, and objective to one with that prediction_type; betas have to follow "
            "from a formula",
        )


def _attention_levels(config: Any) -> object:
    """Return `cross_attention` of a U-Net's config, or its block names where they are not those of `make_unet`."""
    levels = tuple(name.startswith("CrossAttn") for name in config.down_block_types)
    names = tuple(config.down_block_types), tuple(config.up_block_types)
    return levels if names == _block_types(DenoiserShape(cross_attention=levels)) else names


def _common_value(value: Any) -> object:
    """Return the common value of a setting that a config may list by level, or all values where they differ."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values[0] if len(set(values)) == 1 else values


def _require_shape(folder: Path, found: Mapping[str, object], asked: DenoiserShape) -> None:
    other = [key for key, value in found.items() if value != getattr(asked, key)]
    if other:
        raise WeightsMismatch(
            f"the networks in '{folder}' have another shape.",
            *(f"{key}: found {found[key]}, model.{key} is {getattr(asked, key)}" for key in other),
            fix=f"set {', '.join(f'model.{key}' for key in other)} to the values found",
        )
