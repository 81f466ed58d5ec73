"""Plan what an extractor reads, from configs alone: no weights are loaded for it.

Holds the checks of the settings, and the fingerprint: everything on the backbone's side that fixes what a feature is.
A feature store computes its digest from here before any model is loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from diffprobe.backbones.base import DTYPES, BackboneSpec, Checkpoint, Family
from diffprobe.backbones.cell import Cell, check_choice
from diffprobe.backbones.families import describe
from diffprobe.backbones.locate import locate
from diffprobe.backbones.lora import check_lora
from diffprobe.backbones.network_size import module_limit
from diffprobe.backbones.noise import NoiseSchedule, clean_schedule
from diffprobe.backbones.part_config import part_names
from diffprobe.backbones.parts import part_of
from diffprobe.backbones.pool import check_size, pooled_width
from diffprobe.backbones.prompts import Branch, make_branches
from diffprobe.backbones.quantized import linear_layers
from diffprobe.backbones.taps import TapInfo, resolve, tap_infos, trace_spec
from diffprobe.config.massive import MassiveConfig
from diffprobe.config.parse import parse
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError

_RULES = 2
"""Raised when the way from an image to a feature changes in a way that changes numbers."""


@dataclass(frozen=True, kw_only=True)
class ReadPlan:
    """A backbone and what is read from it: the two configs, and what they resolve to for one checkpoint."""

    backbone: BackboneConfig
    """Which checkpoint, and how it runs."""
    features: FeaturesConfig
    """What is read, as configured."""
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
    """Conditions under which every cell is read, the main one first."""

    @property
    def pool(self) -> str:
        """Pooling, as `cell.parse_pool` reads it."""
        return self.features.pool

    @property
    def draws(self) -> int:
        """Noise samples per image."""
        return self.features.draws

    @property
    def keep_draws(self) -> bool:
        """Whether draws are kept side by side instead of averaged."""
        return self.features.keep_draws

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self.features.seed

    @property
    def dtype(self) -> str:
        """Precision of the forward pass, a key of `base.DTYPES`."""
        return self.backbone.dtype

    @property
    def random_seed(self) -> int | None:
        """Seed of the denoiser's random weights; None for the trained ones."""
        return self.backbone.random_seed if self.backbone.random_weights else None

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
        """Everything on the backbone's side that fixes the features, as JSON. Hashes the weight files once per process.

        The path of the weights, the device, and batching are left out: they have no influence.
        Raises: WeightsMissing.
        """
        return {
            "rules": _RULES,
            "family": self.spec.family,
            "weights": self._weights(),
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
            **({} if self.backbone.quantize == "none" else {"quantize": self.backbone.quantize}),
            "schedule": self.schedule.digest,
        }

    def _weights(self) -> dict[str, str]:
        """Digest the parts; a LoRA is one of them, and only there if it is set."""
        lora = self.checkpoint.lora
        found = self.family.digests(self.checkpoint, self.random_seed is None)
        return found if lora is None else {**found, "lora": lora.digest}


def make_plan(backbone: BackboneConfig, features: FeaturesConfig, *, cached_only: bool = False) -> ReadPlan:
    """Check settings against the configs of a checkpoint, and resolve taps, timesteps and conditions.

    With `cached_only` a checkpoint of the hub is taken from its cache alone, and nothing is downloaded.

    Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
    """
    check_choice("dtype", backbone.dtype, tuple(DTYPES))
    branches = make_branches(
        features.condition, features.prompt, unconditional=features.unconditional, negative=features.negative_prompt,
        missing=features.missing,
    )  # fmt: skip
    if backbone.random_weights and backbone.denoiser_weights is not None:
        raise ConfigError("random_weights=true reads no denoiser_weights.", fix="give one of the two")
    if backbone.random_weights and backbone.lora is not None:
        raise ConfigError("random_weights=true has no trained weights that a LoRA belongs to.", fix="remove lora")
    checkpoint = locate(
        backbone.path,
        revision=backbone.revision,
        denoiser_weights=backbone.denoiser_weights,
        lora=backbone.lora,
        single_file_config=backbone.single_file_config,
        cached_only=cached_only,
    )
    with module_limit(backbone.max_modules):
        family, spec = describe(checkpoint, features.resolution)
        if backbone.part != "denoiser":
            family, spec = part_of(backbone.part, checkpoint, family, spec)
    for branch in branches:
        check_choice(f"condition of backbone '{checkpoint.name}':", branch.condition, spec.conditions)
    if features.missing == "empty":
        check_choice(f"features.missing: condition of backbone '{checkpoint.name}':", "empty", spec.conditions)
    timesteps = {*features.timesteps, *(spec.schedule.nearest(ratio, checkpoint.name) for ratio in features.snr)}
    schedule = clean_schedule(spec.schedule.n_timesteps) if backbone.clean_input else spec.schedule
    schedule.check(sorted(timesteps), checkpoint.name)
    _check_views(backbone, features.views, spec, float(schedule.noise[sorted(timesteps)].max()))
    traced = trace_spec(spec, count=False)
    infos = {tap.path: tap for tap in tap_infos(spec, traced, counted=False)}
    paths = resolve(features.taps, list(infos.values()), spec)
    for path in paths:
        check_size(features.pool, path, infos[path].size)
    _check_massive(backbone, features.massive, spec, [infos[path] for path in paths])
    needed = traced.needed(paths)
    if backbone.quantize != "none" and not linear_layers(spec.denoiser, [one for one in spec.blocks if one in needed]):
        raise ConfigError(
            f"backbone.quantize={backbone.quantize} has no effect on '{checkpoint.name}'.",
            "no block before the deepest tap has a linear layer",
            fix="remove it",
        )
    if checkpoint.lora is not None:
        texts = [part for part in part_names(checkpoint.index) if part.startswith("text_encoder")]
        check_lora(checkpoint.lora, spec.denoiser, texts, name=checkpoint.name, needed=needed)
    return ReadPlan(
        backbone=backbone,
        features=features,
        checkpoint=checkpoint,
        family=family,
        spec=spec,
        taps=tuple(infos[path] for path in paths),
        needed=needed,
        schedule=schedule,
        timesteps=tuple(sorted(timesteps)),
        branches=tuple(branches),
    )


def _check_views(backbone: BackboneConfig, views: ViewsConfig, spec: BackboneSpec, noise: float) -> None:
    """Refuse views without effect on what is read. Raises: ConfigError."""
    if views.active and backbone.part == "text_encoder":
        raise ConfigError("features.views with backbone.part=text_encoder: no image is read.", fix="remove the views")
    if views.redraw_noise and not noise:
        raise ConfigError("features.views.redraw_noise=true: the input of this backbone has no noise.", fix="remove it")
    if views.padding >= spec.resolution:
        raise ConfigError(
            f"features.views.padding={views.padding} is not smaller than the images of {spec.resolution} px."
        )


def _check_massive(backbone: BackboneConfig, massive: MassiveConfig, spec: BackboneSpec, taps: list[TapInfo]) -> None:
    """Refuse a treatment of massive channels for readouts and parts without such channels. Raises: ConfigError."""
    if not massive.active:
        return
    asked = f"features.massive.treatment={massive.treatment}"
    if backbone.part != "denoiser" or spec.family == "pixels":
        raise ConfigError(f"{asked} belongs to taps of a denoiser.", fix="remove it")
    attention = [tap.path for tap in taps if tap.form == "attention"]
    if attention:
        raise ConfigError(
            f"{asked}: the channels of {', '.join(attention)} are text tokens.",
            fix="read attention maps without features.massive",
        )


def make_configs(id_or_path: str, options: Mapping[str, object]) -> tuple[BackboneConfig, FeaturesConfig]:
    """Build the two configs from keyword options; each goes to the config that has a field of its name.

    Any iterable but a text is taken where a config has a tuple; arrays and tensors are taken by their values.
    Raises: ConfigError naming the options that are unknown, of a wrong type or out of range.
    """
    on_backbone = {field.name for field in fields(BackboneConfig)}
    trees: tuple[dict[str, object], dict[str, object]] = ({"path": id_or_path}, {})
    for name, value in options.items():
        if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
            value = value.tolist()
        listed = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
        trees[name not in on_backbone][name] = list(value) if listed else value  # type: ignore[call-overload]
    try:
        return parse(BackboneConfig, trees[0]), parse(FeaturesConfig, trees[1])
    except ConfigError as error:  # without the advice to look at a configuration file
        raise ConfigError(error.what, *error.details) from None
