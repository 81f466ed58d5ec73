"""Stable Diffusion pipelines: a cross-attention U-Net over VAE latents, told a CLIP text.

Its forward process is variance-preserving; timestep t is on the training grid (0..999), larger is noisier.
Random weights are those of the U-Net alone: VAE and text encoder stay trained, so that the null sees the same input.
"""

import copy
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, Checkpoint, Condition, LoadOptions, Outline, Told
from diffprobe.backbones.capture import cut
from diffprobe.backbones.condition import TEXT_CONDITIONS, ClipText, PromptMemory, load_clip_text
from diffprobe.backbones.layout import Layout
from diffprobe.backbones.noise import load_schedule
from diffprobe.backbones.quiet import quiet_libraries
from diffprobe.backbones.vae import VaeEncoder, latent_geometry, load_vae_encoder
from diffprobe.backbones.weights import digest_files, digest_part, load_tensors, require_files
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import FeatureMap, Images

_TINY_WORDS = (
    "a an of the photo noto twemoji emoji cat dog red blue green circle square light dark face hand tree sun moon star"
)
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def matches(index: dict[str, Any]) -> bool:
    """Tell from `model_index.json` whether a checkpoint is of this family."""
    return index.get("_class_name") == "StableDiffusionPipeline"


def outline(checkpoint: Checkpoint, resolution: int | None) -> Outline:
    """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    config = _config(checkpoint, "unet")
    _config(checkpoint, "vae")
    channels, factor = latent_geometry(checkpoint.part("vae"))
    if config.get("in_channels", 4) != channels:
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' takes {config.get('in_channels')} channels, its VAE gives {channels}.",
            "inpainting and other image-conditioned U-Nets are not of this family",
        )
    if config.get("addition_embed_type") not in (None, "text") or config.get("class_embed_type"):
        raise WeightsMismatch(
            f"the U-Net of '{checkpoint.name}' needs more than a text, which this family does not give."
        )
    unet = _make_unet(config, torch.device("meta"))
    sample_size = config.get("sample_size") or 64
    side = resolution or factor * (sample_size if isinstance(sample_size, int) else sample_size[0])
    if side % factor:
        raise ConfigError(
            f"resolution {side} is no multiple of {factor}, by which the VAE of '{checkpoint.name}' shrinks."
        )
    size = side // factor
    n_tokens = _config(checkpoint, "text_encoder").get("max_position_embeddings", 77)
    width = unet.config.cross_attention_dim
    if not isinstance(width, int):
        raise WeightsMismatch(f"the U-Net of '{checkpoint.name}' takes texts of several widths: {list(width)}.")

    def run(network: nn.Module) -> object:
        text = torch.empty(1, n_tokens, width, device="meta")
        t = torch.zeros(1, dtype=torch.long, device="meta")
        return network(
            torch.empty(1, channels, size, size, device="meta"), t, encoder_hidden_states=text, return_dict=False
        )

    blocks = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    ups = [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    aliases = {f"up_ft{i}": path for i, path in enumerate(ups)}
    if unet.mid_block is not None:
        blocks.append("mid_block")
        aliases = {"bottleneck": "mid_block", "h-space": "mid_block", **aliases}
    return Outline(
        family="sd_unet",
        name=checkpoint.name,
        denoiser=unet,
        run=run,
        signature=digest_json([config, size, n_tokens]),
        resolution=side,
        latent_shape=(channels, size, size),
        schedule=load_schedule(checkpoint.part("scheduler")),
        layout=Layout(size=(size, size), text_only=r"(.*\.)?(attn2\.to_k|attn2\.to_v|encoder_hid_proj)"),
        conditions=TEXT_CONDITIONS,
        aliases=aliases,
        blocks=(*blocks, *ups),
    )


def load(checkpoint: Checkpoint, outline: Outline, needed: Collection[str], options: LoadOptions) -> Backbone:
    """Load text encoder, VAE encoder, and of the U-Net only the modules in `needed`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    parts = [checkpoint.part(name) for name in ("unet", "vae", "text_encoder")]
    require_files(*(parts if options.random_seed is None else parts[1:]))
    if options.random_seed is None:
        unet = copy.deepcopy(outline.denoiser)
        expected = frozenset(unet.state_dict())
        cut(unet, needed)
        load_tensors(unet, parts[0], dtype=options.dtype, expected=expected)
    else:
        # drawn whole and then cut, so that the weights do not depend on the taps; under a seed of their own, so that
        # they can't be those that a training run with the same seed started from
        with torch.random.fork_rng(devices=[]), quiet_libraries():
            torch.manual_seed(derive_seed("random_weights", options.random_seed))
            unet = _make_unet(_config(checkpoint, "unet"), torch.device("cpu")).to(options.dtype)
        cut(unet, needed)
    unet.eval().requires_grad_(False)
    vae = load_vae_encoder(parts[1], dtype=options.dtype)
    return SdUnet(unet, vae, load_clip_text(parts[2].parent, dtype=options.dtype))


class SdUnet(Backbone):
    """A loaded Stable Diffusion checkpoint."""

    def __init__(self, unet: nn.Module, vae: VaeEncoder, text: ClipText) -> None:
        self.denoiser, self._vae = unet, vae
        self._text: ClipText | None = text
        self._prompts = PromptMemory(lambda prompts: {"encoder_hidden_states": text(prompts)[0]})

    def encode_images(self, images: Images) -> FeatureMap:
        """See `VaeEncoder`."""
        return self._vae(images)

    def encode_conditions(self, values: Sequence[Told]) -> Condition:
        """See `PromptMemory`."""
        return self._prompts([str(value) for value in values])

    def denoise(self, x_t: FeatureMap, timesteps: Tensor, condition: Condition) -> None:
        """Run the U-Net once."""
        self.denoiser(x_t, timesteps, **condition, return_dict=False)

    def parts(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""
        parts = {"denoiser": self.denoiser, "vae": self._vae.vae}
        return parts if self._text is None else {**parts, "text_encoder": self._text.encoder}

    def release_text(self) -> None:
        """Free the text encoder."""
        self._text = None
        self._prompts.seal()

    def to(self, device: torch.device) -> None:
        """Move all loaded networks, and the remembered prompts."""
        super().to(device)
        self._prompts.to(device)


def digests(checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
    """Digest the parts. Raises: WeightsMissing."""
    parts = {
        "denoiser": checkpoint.part("unet"),
        "vae": checkpoint.part("vae"),
        "text_encoder": checkpoint.part("text_encoder"),
    }
    require_files(*(folder for name, folder in parts.items() if trained or name != "denoiser"))
    found = {name: digest_part(folder, weights=trained or name != "denoiser") for name, folder in parts.items()}
    found["tokenizer"] = digest_files([checkpoint.part("tokenizer") / name for name in _TOKENIZER_FILES])
    return found


def _config(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    path = checkpoint.part(part) / "config.json"
    if not path.is_file():
        raise WeightsMissing(
            f"checkpoint '{checkpoint.name}' has no {part}/config.json.",
            fix="save it again with save_pretrained(FOLDER)",
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _make_unet(config: dict[str, Any], device: torch.device) -> Any:
    from diffusers import UNet2DConditionModel

    with device:
        return UNet2DConditionModel.from_config(config)


def tiny(
    path: Path | str,
    *,
    seed: int = 0,
    channels: Sequence[int] = (16, 32, 32),
    scheduler: str = "DDIMScheduler",
    resolution: int = 32,
) -> Path:
    """Write a tiny pipeline with random weights in the real format, for tests and examples.

    Args:
        path: folder to write, created if it does not exist.
        seed: seeds all weights; the global generator is left as it was.
        channels: width of each U-Net level, highest first. All levels but the lowest have cross-attention.
        scheduler: diffusers class of the scheduler that the pipeline ships; the betas are Stable Diffusion's for all.
        resolution: image side in pixels; the VAE halves it.
    Returns: `path`.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    path = Path(path)
    n = len(channels)
    cross = n - 1 if n > 1 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=resolution // 2,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",) * (n - cross),
            up_block_types=("UpBlock2D",) * (n - cross) + ("CrossAttnUpBlock2D",) * cross,
        )
        vae = diffusers.AutoencoderKL(
            sample_size=resolution,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            mid_block_add_attention=False,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=6.0,  # brings the random latents near unit variance: images stand out from the noise
            force_upcast=False,
        )
        tokenizer = _tiny_tokenizer(path)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    made = getattr(diffusers, scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    if "clip_sample" in made.config:
        made.register_to_config(clip_sample=False)
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=made,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path)
    return path


def _tiny_tokenizer(path: Path) -> Any:
    """Write and load a CLIP tokenizer that knows the letters, and the tiny words as one token each."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-_'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in _TINY_WORDS.split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
            tokens.append(parts[0])
    folder = path / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
