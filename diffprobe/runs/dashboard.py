"""What the dashboard of an experiment shows: read from its file, those below its folder, and their tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprobe.config import compose, search_path
from diffprobe.config.parse import record_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import RunFailed, nearest
from diffprobe.launch.wandb_workspace import Dashboard, differing_keys
from diffprobe.metrics import measured_on
from diffprobe.report.table_spec import load_specs
from diffprobe.runs.run_media import figure_name

_DIRECTION = ("auroc",)
"""Metric of directions, which is not a registered one."""


def dashboard_of(name: str) -> Dashboard:
    """Return the dashboard of an experiment, or of a folder of experiments.

    Args:
        name: "emoji/sae", or "emoji/sae_table" for all experiments below that folder.

    Raises: RunFailed if no experiment has this name; ConfigError if one of them is not valid.
    """
    known = search_path.experiments()
    name = name.strip("/")
    names = [name] if name in known else [one for one in known if one.startswith(f"{name}/")]
    if not names:
        close = nearest(name, [*known, *{one.rpartition("/")[0] for one in known}])
        raise RunFailed(
            f"no experiment '{name}'.",
            *([f"nearest: {', '.join(close)}"] if close else []),
            fix="diffprobe config --list names them",
        )
    configs = [compose.load(one) for one in names]
    measured = list(dict.fromkeys(metric for config in configs for metric in _of_kind(config)))
    in_tables = dict.fromkeys(metric for folder in _folders(names, known) for metric in _of_tables(folder))
    metrics = [metric for metric in in_tables if metric in measured] or measured  # a folder may have other kinds too
    trees: list[dict[str, Any]] = [record_tree(config) for config in configs]
    media = _media(configs, metrics)
    return Dashboard(experiments=tuple(names), metrics=tuple(metrics), settings=differing_keys(trees), media=media)


def _media(configs: Sequence[object], metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of the media that the runs of some experiments log."""
    found = []
    for config in configs:
        if isinstance(config, RunConfig) and _has_heat_map(config):
            place = f"{config.features.condition}:{config.features.pool}"
            targets = (None,) if config.probe.kind == "sae" else config.probe.targets
            measured = _of_kind(config)
            found += [
                f"figure/{figure_name(metric, target, config.probe.name, place)}"
                for metric in metrics for target in targets if metric in measured
            ]  # fmt: skip
    probes = any(isinstance(config, RunConfig) for config in configs)
    return tuple(dict.fromkeys((*found, *(("table/scores", "page/run") if probes else ()))))


def _has_heat_map(config: RunConfig) -> bool:
    """Return whether a run draws several layers or timesteps; a pattern of taps may give several, and a grid names them
    after its members."""
    if config.probe.grid:
        return False
    cells = (config.probe.cell,) if config.probe.cell else config.features.taps
    several = len(config.features.timesteps) > 1 and not config.probe.cell
    return several or len(cells) > 1 or any("*" in cell for cell in cells)


def _folders(names: list[str], known: dict[str, Path]) -> list[Path]:
    return list(dict.fromkeys(known[name].parent for name in names))


def _of_tables(folder: Path) -> list[str]:
    file = folder / "table.yaml"
    return [spec.metric for spec in load_specs(file)] if file.is_file() else []


def _of_kind(config: object) -> list[str]:
    if not isinstance(config, RunConfig):
        return []
    if config.probe.kind == "direction":
        return list(_DIRECTION)
    return [metric.name for metric in measured_on(config.probe.kind)]
