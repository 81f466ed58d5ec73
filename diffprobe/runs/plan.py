"""The plan of `diffprobe train`: a run as far as it can be judged without features, its folder and its digest.

Free of torch but for the probe's own file, so that a configuration can be judged where nothing is run. Next in the
flow: `train.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes
from diffprobe.runs.grid import Point, points


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that was judged as far as it can be without features."""

    config: RunConfig
    """The configuration as given."""
    probe: ModuleType
    """The probe's file."""
    params: Any
    """Its judged settings."""
    tree: dict[str, Any]
    """What the result records and the digest names: everything but the place of the output."""
    run_dir: Path
    """Folder of the run: <output>/<experiment>/<first 12 digits of the digest>."""
    points: tuple[Point, ...] = ()
    """What trains in the run where `probe.grid` is given; each has a record of its own."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run_dir.name


def plan(config: RunConfig) -> RunPlan:
    """Judge a run: the probe's file, its settings and grid, the control.

    Raises: ConfigError, UnknownName. Nothing is loaded or written.
    """
    kind, name = config.probe.kind, config.probe.name
    probe = probes(kind).load(name)
    params = parse(probe.Config, config.probe.params, at="probe.params")
    if kind == "sae" and config.control == "shuffled_labels":
        raise ConfigError("control=shuffled_labels: a sparse autoencoder sees no labels to shuffle.")
    if kind != "sae" and not config.probe.targets:
        raise ConfigError("probe.targets is empty; at least one is needed.", "allowed: label, or names of attributes")
    if kind == "direction" and config.control == "shuffled_labels":
        raise ConfigError(
            "control=shuffled_labels: a direction is fitted to shuffled labels in every run, beside the real one."
        )
    tree = {key: value for key, value in to_tree(config).items() if key != "output"}
    # a run that does not use these keys has the digest that it had before there were any
    for key in ("grid", "batched"):
        if not tree["probe"][key]:
            del tree["probe"][key]
    for key, default in (("placement", "auto"), ("shuffle", "samples")):
        if tree["features"][key] == default:
            del tree["features"][key]
    folder = Path(config.output) / (config.experiment or kind) / digest_json(tree)[:12]
    found = points(config, probe.Config, tree)
    if config.features.shuffle == "rows":
        _check_rows(kind, [point.params for point in found] or [params])
    return RunPlan(config=config, probe=probe, params=params, tree=tree, run_dir=folder, points=found)


def _check_rows(kind: str, params: Sequence[Any]) -> None:
    """Refuse a permutation of single rows for probes that can't use one. Raises: ConfigError."""
    if kind != "sae":
        raise ConfigError(
            f"features.shuffle=rows: a probe of kind '{kind}' learns from whole samples.",
            fix="features.shuffle=samples",
        )
    if any(part.row_buffer for part in params):
        raise ConfigError(
            "features.shuffle=rows with probe.params.row_buffer: a permutation of all rows leaves nothing to mix.",
            fix="probe.params.row_buffer=0",
        )
