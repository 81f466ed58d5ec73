"""Build a LLaVA with two towers from a language model and a CLIP: trained ones, or tiny random ones for a check."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.hub import model_folder
from diffprobe.backbones.part_config import CONFIG, read_part_config
from diffprobe.backbones.tokenizer_files import load_tokenizer
from diffprobe.backbones.transformers_model import load_transformer, make_text_config
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.safetensors_file import open_safetensors
from diffprobe.generative.tokenizer import train_tokenizer
from diffprobe.generative.visual_tower.network import DiffusionLlava, DiffusionLlavaConfig
from diffprobe.generative.visual_tower.sequences import IMAGE

TINY = "tiny"
"""Name, in place of a path, of a random network that checks the path from images to captions."""
PROJECTORS = ("multi_modal_projector", "diffusion_projector")
"""Modules of the model that turn features into visual tokens."""
_UNBOUNDED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Shape of the random networks that `language_model=tiny` and `clip=tiny` stand for."""

    width: int = 128
    """Width of the language model."""
    layers: int = 2
    """Layers of the language model."""
    heads: int = 4
    """Attention heads of the language model and of CLIP."""
    vocab_size: int = 1500
    """Entries of the vocabulary, which is learnt from the training captions; at least 514."""
    clip_width: int = 64
    """Width of CLIP."""
    clip_layers: int = 2
    """Layers of CLIP; the last but one is read, so at least 2."""
    clip_resolution: int = 32
    """Side of CLIP's images in pixels."""
    clip_patch: int = 8
    """Side of a patch in pixels."""

    def __post_init__(self) -> None:
        least = {"vocab_size": 514, "clip_layers": 2}
        for name, value in vars(self).items():
            if value < least.get(name, 1):
                raise ConfigError(f"tiny.{name}={value} is out of range: at least {least.get(name, 1)}.")
        for name, value, divisor in (
            ("width", self.width, 2 * self.heads),
            ("clip_width", self.clip_width, self.heads),
            ("clip_resolution", self.clip_resolution, self.clip_patch),
        ):
            if value % divisor:
                raise ConfigError(f"tiny.{name}={value} has to be a multiple of {divisor}.")

    def clip_config(self) -> Any:
        """Return the configuration of the tiny CLIP."""
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(
            hidden_size=self.clip_width, intermediate_size=2 * self.clip_width, num_hidden_layers=self.clip_layers,
            num_attention_heads=self.heads, image_size=self.clip_resolution, patch_size=self.clip_patch,
        )  # fmt: skip

    def language_config(self, tokenizer: Any) -> Any:
        """Return the configuration of the tiny language model for a tokenizer."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=4 * self.width,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip


def clip_config(clip: str, tiny: TinyShape) -> Any:
    """Return the configuration of CLIP's image encoder; no weights are read.

    Args:
        clip: folder, hub id, or `tiny`.
    Raises: WeightsMissing; WeightsMismatch for a folder of another model.
    """
    from transformers import CLIPVisionConfig

    if clip == TINY:
        return tiny.clip_config()
    folder = model_folder(clip, "clip")
    require_files(folder)
    kind = read_part_config(folder / CONFIG).get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise WeightsMismatch(f"clip={clip} is a model of type {str(kind)[:80]}.", "allowed: clip, clip_vision_model")
    return make_text_config(CLIPVisionConfig, folder / CONFIG)


def require_language_model(language_model: str) -> Path | None:
    """Return the folder of the language model, with weights and vocabulary; None for `tiny`.

    Raises: WeightsMissing, WeightsMismatch for a type that transformers does not have.
    """
    if language_model == TINY:
        return None
    folder = model_folder(language_model, "language_model")
    require_files(folder)
    _causal_class(folder)
    if not (folder / "tokenizer.json").is_file():
        raise WeightsMissing(
            f"language_model={language_model} has no tokenizer.json.",
            fix="save its tokenizer there: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)",
        )
    return folder


def _causal_class(folder: Path) -> Any:
    """Return transformers' class of causal language models for a folder's config. Raises: WeightsMismatch."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = read_part_config(folder / CONFIG).get("model_type")
    config_class = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    if config_class is None or config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise WeightsMismatch(
            f"'{folder}': model_type is {str(kind)[:80]}, which is not a causal language model of transformers.",
            "code that comes with a checkpoint is never run",
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def make_language_model(
    language_model: str, tiny: TinyShape, captions: Iterable[str], *, seed: int
) -> tuple[nn.Module, Any]:
    """Load or draw a causal language model.

    Args:
        language_model: folder, hub id, or `tiny`.
        captions: training captions, from which the vocabulary of a tiny model is learnt.
        seed: of the weights of a tiny model.
    Returns: the model, and its tokenizer with the token `<image>`.
    Raises: see `require_language_model` and `load_transformer`.
    """
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = require_language_model(language_model)
    if folder is None:
        tokenizer = train_tokenizer(captions, vocab_size=tiny.vocab_size, max_tokens=_UNBOUNDED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = LlamaForCausalLM(tiny.language_config(tokenizer))
    else:
        tokenizer = load_tokenizer(PreTrainedTokenizerFast, folder)
        model = load_transformer(_causal_class(folder), folder, dtype=torch.float32)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return model, tokenizer


def assemble(
    language_model: nn.Module,
    tokenizer: Any,
    *,
    clip: str,
    tiny: TinyShape,
    channels: int,
    size: tuple[int, int],
    width: int,
    seed: int,
) -> DiffusionLlava:
    """Put a language model, CLIP and new projectors together. All parameters are frozen; no tensor is copied.

    Args:
        clip: folder, hub id, or `tiny`.
        channels, size: channels, height and width of the feature maps.
        width: channels of the convolutions of the projector.
        seed: of the projectors, and of a tiny CLIP.
    Raises: ConfigError for other numbers of patches than of diffusion tokens; the errors of loading CLIP.
    """
    from transformers import CLIPVisionModel

    model: Any = language_model
    vision = clip_config(clip, tiny)
    config = DiffusionLlavaConfig(
        text_config=model.config, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        diffusion_channels=channels, diffusion_size=list(size), diffusion_width=width,
        tie_word_embeddings=bool(getattr(model.config, "tie_word_embeddings", False)),
    )  # fmt: skip
    config.image_seq_length = config.n_clip_tokens + config.n_diffusion_tokens
    with torch.device("meta"):
        llava = DiffusionLlava(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = CLIPVisionModel(vision) if clip == TINY else None
        for name in PROJECTORS:
            fresh = getattr(llava.model, name).to_empty(device="cpu")
            for module in fresh.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.reset_parameters()
    if drawn is None:
        drawn = load_transformer(CLIPVisionModel, model_folder(clip, "clip"), dtype=torch.float32)
    llava.model.vision_tower = drawn
    llava.model.language_model = getattr(model, model.base_model_prefix)
    llava.lm_head = model.get_output_embeddings()
    llava.generation_config = model.generation_config
    llava.requires_grad_(False)
    return llava.eval()


def load_projectors(llava: DiffusionLlava, folder: Path) -> None:
    """Copy the projectors of a saved model, for example of a pre-training run, into a model.

    Raises: WeightsMissing; WeightsMismatch for projectors of other sizes.
    """
    require_files(folder)
    wanted = {
        f"model.{part}.{name}": value
        for part in PROJECTORS
        for name, value in getattr(llava.model, part).state_dict().items()
    }
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with open_safetensors(path, error=WeightsMismatch, fix="copy the file again") as stored:
            found.update({name: stored.get_tensor(name) for name in stored.keys() if name in wanted})
    faults = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if faults:
        raise WeightsMismatch(
            f"the projectors in '{folder}' do not fit this run.",
            f"missing or of another shape: {len(faults)}: {', '.join(faults[:3])}",
            fix="the tap, the backbone and the language model that they were trained with",
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])
