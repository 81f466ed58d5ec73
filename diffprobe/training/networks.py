"""The networks and the forward process of a small latent text-to-image model. Owns their shape; what they learn is
`training.denoiser`'s."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffprobe.backbones.condition import require_vocabulary
from diffprobe.backbones.quiet import quiet_libraries
from diffprobe.backbones.weights import SHIPPED, locate, require_files, weight_files
from diffprobe.core.errors import WeightsMismatch, WeightsMissing


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
    """Entries of the caption vocabulary."""
    max_tokens: int = 32
    """Longest caption in tokens."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
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

    down = tuple("CrossAttnDownBlock2D" if reads else "DownBlock2D" for reads in shape.cross_attention)
    up = tuple("CrossAttnUpBlock2D" if reads else "UpBlock2D" for reads in shape.cross_attention[::-1])
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
    """Open the U-Net of a trained pipeline, in float32, to train it further.

    Raises: WeightsMissing without it; WeightsMismatch if it is of another shape.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    require_files(folder / "unet")
    with quiet_libraries():
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
    _require_shape(folder, "channels", tuple(unet.config.block_out_channels), shape.channels)
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
    _require_shape(folder, "text_width", config.hidden_size, shape.text_width)
    _require_shape(folder, "max_tokens", config.max_position_embeddings, shape.max_tokens)
    return tokenizer, text_encoder.float().train()


def _require_shape(folder: Path, key: str, found: object, asked: object) -> None:
    if found != asked:
        raise WeightsMismatch(
            f"'{folder}' holds networks of another shape.",
            f"{key}: found {found}, model.{key} says {asked}",
            fix=f"set model.{key} to what was found",
        )
