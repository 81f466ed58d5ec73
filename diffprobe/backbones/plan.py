"""What an extractor will read, worked out from configs alone: no weights are loaded for it.

Owns the checks of the settings, and the fingerprint: everything on the backbone's side that fixes what a feature is.
A feature store asks here which content it should hold before any model is loaded. Next in the flow: `extractor.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffprobe.backbones.base import DTYPES, Checkpoint, Family, Outline
from diffprobe.backbones.cell import POOLS, Cell, check_choice
from diffprobe.backbones.families import family_of
from diffprobe.backbones.taps import TapInfo, resolve, tap_infos, trace_outline
from diffprobe.backbones.weights import locate
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError

_RULES = 1
"""Raised when the way from an image to a feature changes in a way that changes numbers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A backbone and what is read from it."""

    checkpoint: Checkpoint
    """Where the weights are."""
    family: Family
    """The family module."""
    outline: Outline
    """The backbone as its config describes it."""
    taps: tuple[TapInfo, ...]
    """What is read, in the order in which the backbone reaches it."""
    needed: frozenset[str]
    """Modules of the denoiser that run until the deepest tap has been read."""
    timesteps: tuple[int, ...]
    """Positions on the training grid, ascending."""
    condition: str
    """One of `cell.CONDITIONS`."""
    prompt: str | None
    """The prompt of condition=prompt."""
    pool: str
    """One of `cell.POOLS`."""
    draws: int
    """Noise samples an image, averaged."""
    seed: int
    """Seed of the noise."""
    dtype: str
    """Precision of the forward pass."""
    random_seed: int | None
    """Seed of the denoiser's random weights; None for the trained ones."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """List the cells: taps in order of depth, then timesteps ascending."""
        return tuple(Cell(tap.path, t, self.condition, self.pool) for tap in self.taps for t in self.timesteps)

    @property
    def widths(self) -> dict[str, int]:
        """Map each cell's name to d_in (the channels, if the map is kept)."""
        channels = {tap.path: tap.channels for tap in self.taps}
        return {cell.name: channels[cell.tap] for cell in self.cells}

    @property
    def resolution(self) -> int:
        """Image side in pixels."""
        return self.outline.resolution

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Say in JSON what on the backbone's side fixes the features. Hashes the weight files once a process.

        Where the weights lie, the device, and how images are batched are left out: they have no influence.
        Raises: WeightsMissing.
        """
        return {
            "rules": _RULES,
            "family": self.outline.family,
            "weights": self.family.digests(self.checkpoint, self.random_seed is None),
            "random_weights": self.random_seed is not None,
            "random_seed": self.random_seed,
            "taps": [tap.path for tap in self.taps],
            "timesteps": list(self.timesteps),
            "condition": self.condition,
            "prompt": self.prompt,
            "pool": self.pool,
            "draws": self.draws,
            "seed": self.seed,
            "resolution": self.resolution,
            "dtype": self.dtype,
            "schedule": self.outline.schedule.digest,
        }


def make_plan(
    id_or_path: str,
    *,
    taps: Sequence[str],
    timesteps: Sequence[int],
    condition: str = "empty",
    prompt: str | None = None,
    pool: str = "mean",
    draws: int = 1,
    seed: int = 0,
    resolution: int | None = None,
    dtype: str = "float32",
    random_weights: bool = False,
    random_seed: int = 0,
    revision: str | None = None,
) -> Plan:
    """Check settings against a checkpoint's configs. For the arguments see `DiffusionFeatures.from_pretrained`.

    Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
    """
    _check(taps, timesteps, condition, prompt, pool, draws, dtype)
    checkpoint = locate(str(id_or_path), revision=revision)
    family = family_of(checkpoint)
    outline = family.outline(checkpoint, resolution)
    outline.schedule.check(timesteps, checkpoint.name)
    check_choice(f"condition of backbone '{checkpoint.name}':", condition, outline.conditions)
    traced = trace_outline(outline, count=False)
    infos = {tap.path: tap for tap in tap_infos(outline, traced, counted=False)}
    paths = resolve(taps, list(infos.values()), outline)
    return Plan(
        checkpoint=checkpoint,
        family=family,
        outline=outline,
        taps=tuple(infos[path] for path in paths),
        needed=traced.needed(paths),
        timesteps=tuple(sorted(set(timesteps))),
        condition=condition,
        prompt=prompt,
        pool=pool,
        draws=draws,
        seed=seed,
        dtype=dtype,
        random_seed=random_seed if random_weights else None,
    )


def plan_of(backbone: BackboneConfig, features: FeaturesConfig) -> Plan:
    """Make the plan of a run's configs. Raises: see `make_plan`."""
    return make_plan(
        backbone.path,
        taps=features.taps,
        timesteps=features.timesteps,
        condition=features.condition,
        prompt=features.prompt,
        pool=features.pool,
        draws=features.draws,
        seed=features.seed,
        resolution=features.resolution,
        dtype=backbone.dtype,
        random_weights=backbone.random_weights,
        random_seed=backbone.random_seed,
        revision=backbone.revision,
    )


def _check(
    taps: Sequence[str],
    timesteps: Sequence[int],
    condition: str,
    prompt: str | None,
    pool: str,
    draws: int,
    dtype: str,
) -> None:
    for name, values in (("taps", taps), ("timesteps", timesteps)):
        if isinstance(values, (str, int)) or not len(values):
            raise ConfigError(f"{name} must be a list with at least one entry; got {values!r}.")
    if (prompt is not None) != (condition == "prompt"):
        raise ConfigError(
            f"condition={condition} with prompt={prompt!r}: condition=prompt takes a prompt, no other does."
        )
    if draws < 1:
        raise ConfigError(f"draws={draws}: at least one noise sample is needed.")
    check_choice("pool", pool, POOLS)
    check_choice("dtype", dtype, tuple(DTYPES))
