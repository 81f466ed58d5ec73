"""The configuration of an extraction from prompts: what is sampled, and which cells are read meanwhile."""

import math
from dataclasses import dataclass, field
from typing import Literal

from diffprobe.config.schema import BackboneConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How latents are sampled from noise."""

    sampler: Literal["ddim", "dpm", "euler", "lcm"] | None = None
    """Sampler of diffusers: DDIM, DPM-Solver++ (2M), Euler, or that of latent consistency models; all but the last are
    deterministic and have evenly spaced timesteps, the last one of the training grid first. A flow model has Euler
    alone. None: ddim; euler for a flow model."""
    steps: int = 20
    """Sampling steps."""
    shift: float | None = None
    """Flow models: evenly spaced noise levels s from 1 to 1 / steps become shift s / (1 + (shift - 1) s). None: the
    levels of the checkpoint's own pipeline."""
    guidance: float | None = None
    """Weight of classifier-free guidance: the conditional prediction plus `guidance` times its difference to the
    unconditional one (the scale of diffusers minus 1). 0 runs the conditional pass alone. A model with distilled
    guidance gets the scale as input instead. None: 0; for distilled guidance the default of its pipeline: 7.5 for
    latent consistency models, 2.5 for FLUX.1, 3 for FLUX.2."""
    negative_prompt: str | None = None
    """Prompt of the unconditional branch, in place of the empty prompt."""
    seeds: int = 8
    """Samples per prompt. Sample s of every prompt starts from the same noise."""
    seed: int = 0
    """Seed of all noise; with the number of the sample it fixes what a sample starts from."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, seeds=self.seeds)
        at_least(0, guidance=self.guidance)
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise ConfigError(f"shift={self.shift} is out of range: above 0, and finite.")
        if self.negative_prompt is not None and self.guidance == 0:
            raise ConfigError(
                "negative_prompt has no effect with guidance=0: only the conditional pass runs.",
                fix="guidance=3, or remove negative_prompt",
            )


@dataclass(frozen=True, kw_only=True)
class PromptFeaturesConfig:
    """The cells that are read while prompts are sampled."""

    taps: tuple[str, ...]
    """Module paths or aliases: mid_block, up_blocks.1, up_blocks.*, bottleneck, up_ft1."""
    timesteps: tuple[int, ...] = ()
    """Timesteps at which the sampling passes are read; each is one of the sampler's."""
    reread: tuple[int, ...] = ()
    """Timesteps of the training grid at which the generated latent is noised again, with the same noise for all
    prompts, and read under the empty prompt, so that the prompt itself is not in the features."""
    unconditional: bool = False
    """Read the passes of the unconditional branch of guidance as well."""
    pool: str = "mean"
    """Pooling of a feature map: mean, max, none (keep the map), gridK (K x K means), tokensN (N positions)."""
    keep: tuple[Literal["controls", "latents", "images"], ...] = ()
    """What else is stored of the generated image: its latents and its pixels as the controls of real images have them
    (at most 16 x 16 places); the whole latents; the whole image."""
    resolution: int | None = None
    """Height and width of the images in pixels; None: the backbone's own."""
    store: str = "runs/stores"
    """Folder of the feature stores, one subfolder per digest."""

    def __post_init__(self) -> None:
        if not self.taps or not (self.timesteps or self.reread):
            raise ConfigError(f"{'timesteps' if self.taps else 'taps'} is empty; at least one is needed.")
        for name in ("taps", "timesteps", "reread", "keep"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} has duplicates: {', '.join(map(str, values))}.")
        if self.unconditional and not self.timesteps:
            raise ConfigError("unconditional=true has no effect without timesteps: reread has no branches.")
        at_least(1, resolution=self.resolution)


@dataclass(frozen=True, kw_only=True)
class PromptExtraction:
    """Features of prompts (experiment files of kind `extract_prompts`), written by `diffprobe extract`."""

    experiment: str = ""
    """Experiment file without suffix; set when the configuration is loaded."""
    backbone: BackboneConfig
    """The frozen text-to-image model."""
    prompts: str
    """File of prompts: .txt with one per line; or .csv, .tsv, .jsonl with a column `prompt`, perhaps `id` and `split`,
    and attributes in all other columns."""
    features: PromptFeaturesConfig
    """The cells."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling."""
    truncated: Literal["refuse", "allow"] = "refuse"
    """Prompts longer than the tokenizer's limit: refuse the extraction before it starts, or sample from the rest."""

    def __post_init__(self) -> None:
        backbone, sampling = self.backbone, self.sampling
        idle = [name for name in ("compile", "clean_input") if getattr(backbone, name)]
        held = {"part": "denoiser", "cpu_kernels": "mkl"}
        other = [f"backbone.{name}={getattr(backbone, name)}" for name in held if getattr(backbone, name) != held[name]]
        if idle or other:
            name = f"backbone.{idle[0]}=true" if idle else other[0]
            raise ConfigError(f"{name}: prompts are sampled with the whole denoiser, as it is.", fix="remove it")
        if self.features.unconditional and sampling.guidance == 0:
            raise ConfigError(
                "features.unconditional=true with sampling.guidance=0: the unconditional branch does not run.",
                fix="sampling.guidance=3, or features.unconditional=false",
            )
