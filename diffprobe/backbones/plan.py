"""What an extractor will read, worked out from configs alone: no weights are loaded for it.

Owns the checks of the settings, and the fingerprint: everything on the backbone's side that fixes what a feature is.
A feature store asks here which content it should hold before any model is loaded. Next in the flow: `extractor.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffprobe.backbones.base import DTYPES, BackboneSpec, Checkpoint, Family
from diffprobe.backbones.cell import Cell, check_choice
from diffprobe.backbones.families import family_of
from diffprobe.backbones.noise import NoiseSchedule, clean_schedule
from diffprobe.backbones.pool import check_size, pooled_width
from diffprobe.backbones.prompts import Branch, make_branches
from diffprobe.backbones.taps import TapInfo, resolve, tap_infos, trace_spec
from diffprobe.backbones.weights import locate
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError

_RULES = 2
"""Raised when the way from an image to a feature changes in a way that changes numbers."""


@dataclass(frozen=True, kw_only=True)
class ReadPlan:
    """A backbone and what is read from it."""

    checkpoint: Checkpoint
    """Where the weights are."""
    family: Family
    """The family module."""
    spec: BackboneSpec
    """The backbone as its config describes it."""
    taps: tuple[TapInfo, ...]
    """What is read, in the order in which the backbone reaches it."""
    needed: frozenset[str]
    """Modules of the denoiser that run until the deepest tap has been read."""
    schedule: NoiseSchedule
    """How images are noised: the checkpoint's forward process, or not at all."""
    timesteps: tuple[int, ...]
    """Positions on the training grid, ascending."""
    branches: tuple[Branch, ...]
    """What the backbone is told, the main condition first."""
    pool: str
    """A pooling as `cell.parse_pool` reads it."""
    draws: int
    """Noise samples an image."""
    keep_draws: bool
    """Whether draws are kept side by side instead of averaged."""
    seed: int
    """Seed of the noise."""
    dtype: str
    """Precision of the forward pass."""
    random_seed: int | None
    """Seed of the denoiser's random weights; None for the trained ones."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """List the cells: taps in order of depth, then timesteps ascending, then the branches."""
        return tuple(
            Cell(tap.path, t, branch.condition, self.pool)
            for tap in self.taps
            for t in self.timesteps
            for branch in self.branches
        )

    @property
    def widths(self) -> dict[str, int]:
        """Map each cell's name to d_in (the channels, if maps or tokens are kept)."""
        widths = {tap.path: pooled_width(self.pool, tap.channels) for tap in self.taps}
        return {cell.name: widths[cell.tap] for cell in self.cells}

    @property
    def resolution(self) -> int:
        """Image side in pixels."""
        return self.spec.resolution

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Say in JSON what on the backbone's side fixes the features. Hashes the weight files once a process.

        Where the weights lie, the device, and how images are batched are left out: they have no influence.
        Raises: WeightsMissing.
        """
        return {
            "rules": _RULES,
            "family": self.spec.family,
            "weights": self.family.digests(self.checkpoint, self.random_seed is None),
            "random_weights": self.random_seed is not None,
            "random_seed": self.random_seed,
            "taps": [tap.path for tap in self.taps],
            "timesteps": list(self.timesteps),
            "conditions": {branch.condition: branch.prompt for branch in self.branches},
            "conditioning": self.spec.conditioning,
            "pool": self.pool,
            "draws": self.draws,
            "keep_draws": self.keep_draws,
            "seed": self.seed,
            "resolution": self.resolution,
            "dtype": self.dtype,
            "schedule": self.schedule.digest,
        }


def make_plan(
    id_or_path: str,
    *,
    taps: Sequence[str],
    timesteps: Sequence[int] = (),
    snr: Sequence[float] = (),
    condition: str = "empty",
    prompt: str | None = None,
    unconditional: bool = False,
    negative_prompt: str | None = None,
    pool: str = "mean",
    draws: int = 1,
    keep_draws: bool = False,
    seed: int = 0,
    resolution: int | None = None,
    dtype: str = "float32",
    random_weights: bool = False,
    random_seed: int = 0,
    revision: str | None = None,
    denoiser_weights: str | None = None,
    clean_input: bool = False,
) -> ReadPlan:
    """Check settings against a checkpoint's configs. For the arguments see `DiffusionFeatures.from_pretrained`.

    Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
    """
    _check(taps, timesteps, snr, draws, dtype)
    branches = make_branches(condition, prompt, unconditional=unconditional, negative=negative_prompt)
    if random_weights and denoiser_weights is not None:
        raise ConfigError("random_weights=true reads no denoiser_weights.", fix="give one of the two")
    checkpoint = locate(str(id_or_path), revision=revision, denoiser_weights=denoiser_weights)
    family = family_of(checkpoint)
    spec = family.spec(checkpoint, resolution)
    for branch in branches:
        check_choice(f"condition of backbone '{checkpoint.name}':", branch.condition, spec.conditions)
    chosen = {*timesteps, *(spec.schedule.nearest(ratio, checkpoint.name) for ratio in snr)}
    schedule = clean_schedule(spec.schedule.n_timesteps) if clean_input else spec.schedule
    schedule.check(sorted(chosen), checkpoint.name)
    traced = trace_spec(spec, count=False)
    infos = {tap.path: tap for tap in tap_infos(spec, traced, counted=False)}
    paths = resolve(taps, list(infos.values()), spec)
    for path in paths:
        check_size(pool, path, infos[path].size)
    return ReadPlan(
        checkpoint=checkpoint,
        family=family,
        spec=spec,
        taps=tuple(infos[path] for path in paths),
        needed=traced.needed(paths),
        schedule=schedule,
        timesteps=tuple(sorted(chosen)),
        branches=tuple(branches),
        pool=pool,
        draws=draws,
        keep_draws=keep_draws,
        seed=seed,
        dtype=dtype,
        random_seed=random_seed if random_weights else None,
    )


def plan_from_configs(backbone: BackboneConfig, features: FeaturesConfig) -> ReadPlan:
    """Make the plan of a run's configs. Raises: see `make_plan`."""
    return make_plan(
        backbone.path,
        taps=features.taps,
        timesteps=features.timesteps,
        snr=features.snr,
        condition=features.condition,
        prompt=features.prompt,
        unconditional=features.unconditional,
        negative_prompt=features.negative_prompt,
        pool=features.pool,
        draws=features.draws,
        keep_draws=features.keep_draws,
        seed=features.seed,
        resolution=features.resolution,
        dtype=backbone.dtype,
        random_weights=backbone.random_weights,
        random_seed=backbone.random_seed,
        revision=backbone.revision,
        denoiser_weights=backbone.denoiser_weights,
        clean_input=backbone.clean_input,
    )


def _check(taps: Sequence[str], timesteps: Sequence[int], snr: Sequence[float], draws: int, dtype: str) -> None:
    for name, values in (("taps", taps), ("timesteps", timesteps), ("snr", snr)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"{name} must be a list; got {values!r}.")
    for name, empty in (("taps", not taps), ("timesteps", not timesteps and not snr)):
        if empty:
            raise ConfigError(f"{name} must be a list with at least one entry; got [].")
    if draws < 1:
        raise ConfigError(f"draws={draws}: at least one noise sample is needed.")
    check_choice("dtype", dtype, tuple(DTYPES))
