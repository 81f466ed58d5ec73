"""The points of `probe.grid`: what each of the autoencoders that train in one run is made of, and what it records.

Owns the judging of the grid's keys and values, and the configuration in a member's record. Free of torch. Next in the
flow: `training/sae_bank.py`.
"""

import itertools
import re
from dataclasses import dataclass, fields
from typing import Any

from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, unknown

MEMBERS = "members"
"""Folder below a run's own that holds a folder a member."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One combination of the grid's values."""

    name: str
    """Its name in logs and folders: mid_block@t200,k=16,seed=1."""
    params: Any
    """The judged settings of the probe."""
    cell: str | None
    """The cell asked for; None for the only one."""
    seed: int
    """Seed of the initial weights."""
    tree: dict[str, Any]
    """What its record says as configuration: that of a run of this point alone. Where the point's seed is not that of
    the run, which orders the samples, it stands in `probe.grid.seed`; so it does in a batched run."""


@dataclass(frozen=True, kw_only=True)
class _OwnKeys:
    cell: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()


def points(config: RunConfig, probe_config: type[Any], tree: dict[str, Any]) -> tuple[Point, ...]:
    """Judge the grid of a run and list its points, the last key running fastest; none without a grid.

    Keys are taken in alphabetical order: two grids that differ in theirs are one run, and have one set of names.

    Args:
        probe_config: the `Config` of the probe's file.
        tree: what the run's own record says as configuration.

    Raises: ConfigError for a key that the probe has not got (with the nearest), no values or one twice, values that its
        `Config` refuses, or cells where there is one only.
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
            raise ConfigError(f"probe.grid.{key} names one twice: {', '.join(map(str, values))}.")
    parse(_OwnKeys, {key: grid[key] for key in grid if key in own}, at="probe.grid")
    if "cell" in grid and config.control == "raw_pixels":
        raise ConfigError("probe.grid.cell with control=raw_pixels: the pixels are one cell.")
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
    judged = parse(probe_config, {**config.probe.params, **params}, at="probe.grid")
    probe = {key: value for key, value in tree["probe"].items() if key != "grid"}
    probe |= {"cell": cell, "params": {**probe["params"], **to_tree(params)}}
    if seed != config.seed or config.probe.batched:
        probe["grid"] = {"seed": [seed]}
    parts = [str(value) if key == "cell" else f"{key}={value}" for key, value in chosen.items()]
    name = re.sub(r"[^\w@=.,+-]+", ".", ",".join(parts))
    return Point(name=name, params=judged, cell=cell, seed=seed, tree={**tree, "probe": probe})


def seeds_of(point: Point, config: RunConfig) -> dict[str, int]:
    """Return the seed of a member, and that of the samples' order where it is another."""
    return {"run": point.seed} if point.seed == config.seed else {"run": point.seed, "order": config.seed}
