"""The plan of `diffprobe train`: a run as far as it can be validated without features, its folder and its digest.

Only the file of the probe may import torch, so that a configuration can be validated where nothing is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffprobe.config.massive import MassiveConfig
from diffprobe.config.parse import parse, record_tree, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.registry import PROBE_KINDS, PROBE_TRAINING, probes
from diffprobe.runs.grid import Point, points
from diffprobe.training.kinds.types import ProbeKind, ProbePlan, refuse_unread_views

_ADDED_KEYS: dict[str, dict[str, object]] = {
    "backbone": {"lora": None, "single_file_config": None, "part": "denoiser", "quantize": "none"},
    "data": {"val_fraction": None, "val_group": None},
    "probe": {"grid": {}, "batched": False, "metrics": []},
    "features": {
        "placement": "auto", "shuffle": "samples", "views": to_tree(ViewsConfig()), "massive": to_tree(MassiveConfig()),
    },
}  # fmt: skip
"""Keys that later versions added, with their defaults; at its default a key is left out of the digest."""


@dataclass(frozen=True, kw_only=True)
class RunPlan(ProbePlan):
    """A validated run: what trains, what its result records, and where."""

    tree: dict[str, Any]
    """What the result records and the digest covers: the whole configuration but for the output folder."""
    run_dir: Path
    """Folder of the run: <output>/<experiment>/<first 12 digits of the digest>."""
    points: tuple[Point, ...] = ()
    """What trains in the run where `probe.grid` is given; each has a record of its own."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run_dir.name


def plan(config: RunConfig) -> RunPlan:
    """Validate a run: the kind and file of the probe, its settings, its grid, its metrics and the control.

    Raises: ConfigError, UnknownName. Nothing is loaded or written.
    """
    kind = training_of(config.probe.kind)
    probe = probes(config.probe.kind).load(config.probe.name)
    if config.probe.grid and not kind.TAKES_GRID:
        raise ConfigError(
            f"probe.grid: a probe of kind '{config.probe.kind}' does not train in grids.", fix="a run for each value"
        )
    params = parse(probe.Config, config.probe.params, at="probe.params")
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    for block, added in _ADDED_KEYS.items():
        for key, default in added.items():
            if tree[block][key] == default:
                del tree[block][key]
    folder = Path(config.output) / (config.experiment or config.probe.kind) / digest_json(tree)[:12]
    found = points(config, probe.Config, tree)
    refuse_unread_views(config)
    kind.validate(config, [point.params for point in found] or [params])
    return RunPlan(config=config, probe=probe, params=params, tree=tree, run_dir=folder, points=found)


def also_read(config: RunConfig, cells: Sequence[str]) -> list[str]:
    """Return the cells that a probe reads besides those asked for; a kind without the function `also_read` has none."""
    found = getattr(training_of(config.probe.kind), "also_read", None)
    if found is None:
        return []
    probe = probes(config.probe.kind).load(config.probe.name)
    return list(found(config, parse(probe.Config, config.probe.params, at="probe.params"), cells))


def training_of(kind: str) -> ProbeKind:
    """Return how a kind of probe is trained. Raises: ConfigError for an unknown kind, with the nearest."""
    if kind not in PROBE_KINDS.names():
        raise unknown("probe.kind", kind, PROBE_KINDS.names(), ConfigError)
    return cast(ProbeKind, PROBE_TRAINING.load(kind))
