"""Plan what is read while prompts are sampled, from configs alone: no weights are loaded for it.

Cells of the sampling passes have the condition `caption` (the sample's own prompt) and `negative` (the unconditional
branch); those of the generated latent that is noised again have `empty`, as an extraction from images has by default.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from diffprobe.backbones.base import BackboneSpec
from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.backbones.families.pixels import SIDE as PIXEL_SIDE
from diffprobe.backbones.flow_sampler import FLOW_SAMPLER, FlowSampler, flow_grid
from diffprobe.backbones.parts import LATENTS
from diffprobe.backbones.parts import SIDE as LATENT_SIDE
from diffprobe.backbones.plan import ReadPlan, make_plan
from diffprobe.backbones.pool import pooled_width
from diffprobe.backbones.samplers import SAMPLERS, Sampler, check_timesteps, make_sampler, scheduler_config
from diffprobe.config.prompt_schema import PromptExtraction, SamplingConfig
from diffprobe.config.schema import FeaturesConfig
from diffprobe.core.errors import ConfigError

CONDITIONAL, UNCONDITIONAL, REREAD = "caption", "negative", "empty"
"""Conditions of cells: the prompt's own pass, the other branch of guidance, the generated latent noised again."""
PIXELS = "pixels"
_RULES = 1
"""Raised when the way from a prompt to a feature changes in a way that changes numbers."""
_DISTILLED = ("guidance_scale", "guidance")
"""Keys of a spec's conditioning for the guidance scale that a network receives, with its pipeline's default."""


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """What is read while prompts are sampled."""

    read: ReadPlan
    """The backbone and its taps; its timesteps are those of the sampling passes."""
    reread: ReadPlan | None
    """The reading of generated latents that are noised again; None for none."""
    sampling: SamplingConfig
    """How latents are sampled."""
    sampler: str
    """Name of the sampler."""
    guidance: float
    """Weight of guidance; for distilled guidance, the value that the network receives."""
    scheduler: dict[str, Any]
    """Scheduler config of the checkpoint."""
    grid: tuple[int, ...]
    """Timesteps of the sampler, the noisiest first."""
    unconditional: bool
    """Whether the unconditional branch is read."""
    keep: tuple[str, ...]
    """What is stored of generated images."""

    @property
    def spec(self) -> BackboneSpec:
        """The backbone as its config describes it."""
        return self.read.spec

    @property
    def is_distilled(self) -> bool:
        """Whether the network takes the guidance scale as input."""
        return distilled_guidance(self.spec) is not None

    @property
    def is_guided(self) -> bool:
        """Whether each step has a second pass, under the unconditional condition."""
        return self.guidance > 0 and not self.is_distilled

    @property
    def needs_image(self) -> bool:
        """Whether sampling has to end: the generated latent is read again, or stored."""
        return self.reread is not None or bool(self.keep)

    @property
    def cells(self) -> dict[Cell, int]:
        """Cell -> width, in the order of the store: sampling passes, reread, generated images."""
        pool = self.read.pool
        branches = (CONDITIONAL, UNCONDITIONAL) if self.unconditional else (CONDITIONAL,)
        times = [(t, branch) for t in self.read.timesteps for branch in branches] if self._timesteps else []
        if self.reread is not None:
            times += [(t, REREAD) for t in self.reread.timesteps]
        found = {
            Cell(tap.path, t, condition, pool): pooled_width(pool, tap.channels)
            for tap in self.read.taps
            for t, condition in times
        }
        channels, side = self.spec.latent_shape[0], self.spec.latent_shape[1]
        if "controls" in self.keep:
            found[Cell(LATENTS, 0, REREAD, "mean")] = channels * min(side, LATENT_SIDE) ** 2
            found[Cell(PIXELS, 0, REREAD, "mean")] = 3 * PIXEL_SIDE**2
        if "latents" in self.keep:
            found[Cell(LATENTS, 0, CONDITIONAL, "none")] = channels
        if "images" in self.keep:
            found[Cell(PIXELS, 0, CONDITIONAL, "none")] = 3
        return found

    @property
    def widths(self) -> dict[str, int]:
        """Name of each cell -> width."""
        return {cell.name: width for cell, width in self.cells.items()}

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's features in float32, all cells together."""
        kind, number = parse_pool(self.read.pool)
        sizes = {tap.path: math.prod(tap.size) for tap in self.read.taps}
        places = {"none": None, "tokens": number}
        total = 0
        for cell, width in self.cells.items():
            if cell.tap in sizes:
                total += width * (sizes[cell.tap] if (n := places.get(kind, 1)) is None else n)
            elif cell.pool == "none":
                total += math.prod(self.spec.latent_shape) if cell.tap == LATENTS else 3 * self.spec.resolution**2
            else:
                total += width
        return 4 * total

    @property
    def passes(self) -> int:
        """Rows that go through the denoiser for one sample."""
        last = len(self.grid) if self.needs_image else max(self.grid.index(t) for t in self._timesteps) + 1
        return last * (2 if self.is_guided else 1) + (0 if self.reread is None else len(self.reread.timesteps))

    @property
    def _timesteps(self) -> tuple[int, ...]:
        return () if self.read.features.condition == REREAD else self.read.timesteps

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything on the backbone's side that fixes the features, as JSON; see `ReadPlan.fingerprint`.

        Raises: WeightsMissing.
        """
        sampling, guided = self.sampling, self.is_guided or self.is_distilled
        conditions = dict.fromkeys(cell.condition for cell in self.cells)
        conditioning = dict(self.spec.conditioning)
        distilled = distilled_guidance(self.spec)
        if distilled is not None:
            conditioning[distilled] = 1 + self.guidance
        reread = () if self.reread is None else self.reread.timesteps
        return {
            **self.read.fingerprint,
            "timesteps": sorted({*self._timesteps, *reread}),
            "conditions": {**conditions, **({UNCONDITIONAL: sampling.negative_prompt} if self.is_guided else {})},
            "conditioning": conditioning,
            "seed": sampling.seed,
            "sampling": {
                "rules": _RULES,
                "sampler": self.sampler,
                "steps": sampling.steps,
                "guidance": self.guidance if guided else 0.0,
                "grid": list(self.grid),
                "seeds": sampling.seeds,
            },
        }

    def make_sampler(self, device: torch.device) -> Sampler | FlowSampler:
        """Make the sampler of one batch."""
        if self.spec.prediction == "flow":
            return FlowSampler(self.grid, self.spec.schedule.n_timesteps - 1)
        return make_sampler(
            self.sampler, self.scheduler, self.sampling.steps, where=self.read.checkpoint.name, device=device
        )


def plan_prompts(config: PromptExtraction, *, cached_only: bool = False) -> PromptPlan:
    """Check settings against the configs of a checkpoint; with `cached_only` nothing is downloaded.

    Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch; ConfigError for a model that takes no prompts, a
        sampler that it cannot be sampled with, and settings without effect.
    """
    asked, sampling = config.features, config.sampling
    common = FeaturesConfig(
        taps=asked.taps, timesteps=asked.timesteps or asked.reread, pool=asked.pool, seed=sampling.seed,
        resolution=asked.resolution,
    )  # fmt: skip
    plan = partial(make_plan, config.backbone, cached_only=cached_only)
    _require_prompts(plan(replace(common, timesteps=(0,))))
    read = plan(replace(common, condition="caption") if asked.timesteps else common)
    reread = plan(replace(common, timesteps=asked.reread)) if asked.reread else None
    scheduler = scheduler_config(read.checkpoint)
    sampler = _sampler_name(read.spec, sampling)
    grid = _grid(read, sampler, sampling, scheduler)
    check_timesteps(asked.timesteps, grid, name=sampler)
    distilled = distilled_guidance(read.spec)
    guidance = sampling.guidance
    if guidance is None:
        guidance = 0.0 if distilled is None else read.spec.conditioning[distilled] - 1
    if (distilled is not None or guidance == 0) and (asked.unconditional or sampling.negative_prompt is not None):
        name = "features.unconditional=true" if asked.unconditional else "sampling.negative_prompt"
        reason = "its guidance is distilled into one pass" if distilled is not None else "guidance is 0"
        raise ConfigError(
            f"{name}: '{read.checkpoint.name}' runs no unconditional branch, since {reason}.",
            fix="remove it" if distilled is not None else "sampling.guidance=3, or remove it",
        )
    return PromptPlan(
        read=read, reread=reread, sampling=sampling, sampler=sampler, guidance=float(guidance), scheduler=scheduler,
        grid=grid, unconditional=asked.unconditional, keep=asked.keep,
    )  # fmt: skip


def _require_prompts(plan: ReadPlan) -> None:
    """Refuse backbones that prompts cannot be sampled with. Raises: ConfigError."""
    spec = plan.spec
    if CONDITIONAL not in spec.conditions:
        raise ConfigError(
            f"backbone '{spec.name}' (family {spec.family}) takes no prompts.",
            f"its conditions: {', '.join(spec.conditions)}",
            fix="name a text-to-image model, for example backbone=emoji-sd",
        )


def distilled_guidance(spec: BackboneSpec) -> str | None:
    """Return the key of the guidance scale that a network receives; None for one that receives none."""
    return next((key for key in _DISTILLED if spec.conditioning.get(key) is not None), None)


def _sampler_name(spec: BackboneSpec, sampling: SamplingConfig) -> str:
    """Return the sampler that is used. Raises: ConfigError."""
    is_flow = spec.prediction == "flow"
    if is_flow and sampling.sampler not in (None, FLOW_SAMPLER):
        raise ConfigError(
            f"sampling.sampler={sampling.sampler}: backbone '{spec.name}' (family {spec.family}) is a flow model.",
            fix=f"sampling.sampler={FLOW_SAMPLER}, or remove it",
        )
    if not is_flow and sampling.shift is not None:
        raise ConfigError(
            f"sampling.shift={sampling.shift:g} has no effect: backbone '{spec.name}' (family {spec.family}) is not a "
            "flow model.",
            fix="remove it",
        )
    return sampling.sampler or (FLOW_SAMPLER if is_flow else next(iter(SAMPLERS)))


def _grid(read: ReadPlan, name: str, sampling: SamplingConfig, scheduler: dict[str, Any]) -> tuple[int, ...]:
    """Return the timesteps that are visited, the noisiest first. Raises: ConfigError, WeightsMismatch."""
    if read.spec.prediction == "flow":
        return flow_grid(read, sampling.steps, shift=sampling.shift)
    where = read.checkpoint.name
    return make_sampler(name, scheduler, sampling.steps, where=where, device=torch.device("cpu")).timesteps
