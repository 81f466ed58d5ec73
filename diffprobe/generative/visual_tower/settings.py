"""The configuration of a training run of a LLaVA with diffusion tokens."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from diffprobe.backbones.hub import model_folder
from diffprobe.backbones.plan import ReadPlan, make_plan
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import digest_files, digest_part
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, LoggerConfig, TrainerConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.generative.run_settings import validate_ema_decay
from diffprobe.generative.visual_tower.assembly import TINY, TinyShape, clip_config, require_language_model
from diffprobe.generative.visual_tower.projector import require_equal_counts, tokens_of_map
from diffprobe.generative.visual_tower.sequences import require_image


@dataclass(frozen=True, kw_only=True)
class VisualTowerSettings:
    """The settings of a training run of a LLaVA that reads CLIP and diffusion tokens."""

    experiment: str
    """Name of the experiment."""
    backbone: BackboneConfig
    """The frozen diffusion model."""
    data: DataConfig
    """Captioned images."""
    tap: str = "up_ft1"
    """Where the diffusion model is read: one tap with a feature map."""
    timestep: int = 25
    """Noise level of the images, on the training grid."""
    resolution: int | None = None
    """Side of the diffusion model's images in pixels; None takes the checkpoint's own."""
    language_model: str = TINY
    """Folder or hub id of a causal language model with safetensors weights, or `tiny` for a random one."""
    clip: str = TINY
    """Folder or hub id of a CLIP with safetensors weights, or `tiny` for a random one; it is never trained."""
    tiny: TinyShape = field(default_factory=TinyShape)
    """Shape of the random networks."""
    diffusion_width: int = 1024
    """Channels of the convolutions of the diffusion projector."""
    train: Literal["projectors", "all"] = "projectors"
    """What is trained: the projectors of both towers alone, or the language model as well."""
    init_from: str | None = None
    """Folder of a model (`weights` of a run) whose projectors training starts from; None draws them."""
    prompt: str = "<image>\n"
    """Text before each caption, with `<image>` where the visual tokens go."""
    max_length: int = 2048
    """Largest number of tokens of a prompt with its visual tokens and caption."""
    accumulation: int = 1
    """Batches per optimiser step."""
    warmup_ratio: float = 0.03
    """Share of the optimiser steps over which the learning rate rises; cosine decay to 0 follows."""
    gradient_checkpointing: bool = False
    """Compute the language model's activations again in the backward pass: less memory, more time."""
    language_model_alone: bool = False
    """Train a second language model of equal initial weights on the same captions without images, as a control."""
    held_out: int = 2000
    """Validation captions, the first ones in shard order, on which tokens are ablated after training."""
    trainer: TrainerConfig
    """Length, precision, learning rate."""
    logger: LoggerConfig
    """Where training curves are logged."""
    seed: int = 0
    """Seed of new weights and of the order."""
    output: str = "runs"
    """Folder of runs."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights; 0, as in the paper, saves those of the last
    step."""

    def __post_init__(self) -> None:
        validate_ema_decay(self.ema_decay)
        require_image(self.prompt)
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio={self.warmup_ratio} is out of range: 0 to below 1.")
        for name, least in (("accumulation", 1), ("diffusion_width", 1), ("held_out", 2), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least {least}.")
        if self.backbone.part == "text_encoder":
            raise ConfigError(
                "backbone.part=text_encoder has no tap with a feature map: it does not read images.",
                fix="backbone.part=denoiser",
            )
        if TINY not in (self.language_model, self.clip) and self.tiny != TinyShape():
            raise ConfigError(
                "tiny has no effect: neither language_model nor clip is `tiny`.", fix="remove the keys of tiny"
            )
        if self.language_model_alone and self.train == "projectors":
            raise ConfigError(
                "language_model_alone=true with train=projectors: the language model is not trained.",
                "its loss without image tokens is recorded in any case, as the control no_image_tokens",
                fix="language_model_alone=false or train=all",
            )
        if self.language_model == TINY and self.train == "projectors":
            raise ConfigError(
                "language_model=tiny with train=projectors: a random language model has to be trained.",
                fix="train=all, or language_model=FOLDER",
            )

    @cached_property
    def plan(self) -> ReadPlan:
        """What is read of the diffusion model.

        Raises: ConfigError for several taps; UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch.
        """
        features = FeaturesConfig(
            source="live", taps=(self.tap,), timesteps=(self.timestep,), pool="none", resolution=self.resolution
        )
        plan = make_plan(self.backbone, features)
        if len(plan.taps) != 1:
            raise ConfigError(
                f"tap={self.tap} names {len(plan.taps)} taps: {', '.join(tap.path for tap in plan.taps[:4])}.",
                "the projector reads one feature map",
                fix=f"tap={plan.taps[0].path}",
            )
        return plan

    def require_weights(self) -> None:
        """Check language model, CLIP and diffusion model from their configurations; no weights are read.

        Raises: ConfigError for other numbers of patches than of diffusion tokens, or a max_length that has no room
            after the visual tokens; WeightsMissing, WeightsMismatch, UnknownTap, BadTimestep.
        """
        vision = clip_config(self.clip, self.tiny)
        n_diffusion = tokens_of_map(self.plan.taps[0].size)
        require_equal_counts((vision.image_size // vision.patch_size) ** 2, n_diffusion)
        if self.max_length < 2 * n_diffusion + 2:
            raise ConfigError(
                f"max_length={self.max_length} has no room for a caption after {2 * n_diffusion} visual tokens.",
                fix=f"max_length={2 * n_diffusion + 128}",
            )
        require_language_model(self.language_model)
        if self.init_from is not None:
            require_files(Path(self.init_from).expanduser())

    def input_digests(self) -> dict[str, str]:
        """Return the digests of the diffusion model and of all trained weights that the run starts from."""
        found = {"backbone": digest_json(self.plan.fingerprint)}
        if (language := require_language_model(self.language_model)) is not None:
            words = digest_files([language / name for name in TOKENIZER_FILES])
            found["language_model"] = digest_json({"network": digest_part(language), "words": words})
        if self.clip != TINY:
            found["clip"] = digest_part(model_folder(self.clip, "clip"))
        if self.init_from is not None:
            found["init_from"] = digest_part(Path(self.init_from).expanduser())
        return found
