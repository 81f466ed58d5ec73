"""The points of `probe.grid`: the settings of each probe that trains in one run, and the configuration it records.

Validates the keys and values of a grid. Free of torch.
"""

import itertools
import re
from dataclasses import dataclass, fields
from typing import Any

from diffprobe.config.controls import has_one_cell
from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.training.kinds.types import GridPoint

_ONE = {"raw_pixels": "the pixels", "vae_latents": "the latents", "text_encoder": "the states of the text encoder"}


@dataclass(frozen=True, kw_only=True)
class Point(GridPoint):
    """One combination of the values of a grid, with the configuration that its result records."""

    tree: dict[str, Any]
    """The configuration of a run of this point alone. Where the point's seed differs from that of the run, which orders
    the samples, it is recorded in `probe.grid.seed`; so it is in a batched run."""


@dataclass(frozen=True, kw_only=True)
class _OwnKeys:
    cell: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()


def points(config: RunConfig, probe_config: type[Any], tree: dict[str, Any]) -> tuple[Point, ...]:
    """Validate the grid of a run and list its points, the last key varying fastest; () without a grid.

    Keys are taken in alphabetical order, so that grids which differ in the order of keys are the same run.

    Args:
        config: the run.
        probe_config: the `Config` of the probe's file.
        tree: the configuration that the run's own result records.

    Raises: ConfigError for an unknown key (with the nearest), no values or a duplicate, values that the `Config` of the
        probe refuses, or several cells where there is only one.
    """
    grid = dict(sorted(config.probe.grid.items()))
    if not grid:
        return ()
    own = {field.name for field in fields(_OwnKeys)}
    known = own | {field.name for field in fields(probe_config)}
    for key, values in grid.items():
        if key not in known:
            raise unknown(f"key of probe.grid for probe '{config.probe.name}':", key, known, ConfigError)
        if not values:
            raise ConfigError(f"probe.grid.{key} is empty; at least one value is needed.")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError(f"probe.grid.{key} has a duplicate: {', '.join(map(str, values))}.")
    parse(_OwnKeys, {key: grid[key] for key in grid if key in own}, at="probe.grid")
    if "cell" in grid and has_one_cell(config.control):
        what = _ONE[config.control]
        raise ConfigError(f"probe.grid.cell with control={config.control}: {what} are one cell.")
    found = [
        _point(config, probe_config, tree, dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]
    names = [point.name for point in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"probe.grid: two points have the name '{name}'.")
    return tuple(found)


def _point(config: RunConfig, probe_config: type[Any], tree: dict[str, Any], chosen: dict[str, Any]) -> Point:
    cell, seed = chosen.get("cell", config.probe.cell), chosen.get("seed", config.seed)
    params = {key: value for key, value in chosen.items() if key not in ("cell", "seed")}
    parsed = parse(probe_config, {**config.probe.params, **params}, at="probe.grid")
    probe = {key: value for key, value in tree["probe"].items() if key != "grid"}
    probe |= {"cell": cell, "params": {**probe["params"], **to_tree(params)}}
    if seed != config.seed or config.probe.batched:
        probe["grid"] = {"seed": [seed]}
    parts = [str(value) if key == "cell" else f"{key}={value}" for key, value in chosen.items()]
    name = re.sub(r"[^\w@=.,+-]+", ".", ",".join(parts))
    return Point(name=name, params=parsed, cell=cell, seed=seed, tree={**tree, "probe": probe})


def seeds_of(point: Point, config: RunConfig) -> dict[str, int]:
    """Return the seed of a member, and that of the sample order where it differs."""
    return {"run": point.seed} if point.seed == config.seed else {"run": point.seed, "order": config.seed}
