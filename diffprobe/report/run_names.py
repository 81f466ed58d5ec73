"""Short names of runs that are shown side by side: the settings in which they differ."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from diffprobe.core.result import RunResult
from diffprobe.report.aggregation import differing_inputs, differing_settings
from diffprobe.report.query import config_value

_BARE = ("probe.name", "probe.cell", "backbone.path", "data.path")
"""Settings whose value alone is a name; of a path, its last part."""
_MAX_PARTS = 4


def run_names(results: Sequence[RunResult]) -> list[str]:
    """Return a name for each result, all different: "topk, k=16", with the name of the run where that is not enough.

    Settings that follow from others in every run are left out where the name is unique without them.
    """
    keys = list(dict.fromkeys(key for run in results[1:] for key, _, _ in differing_settings(results[0], run)))
    keys.sort(key=lambda key: (key not in _BARE, _BARE.index(key) if key in _BARE else 0))
    chosen: list[str] = []
    for key in keys:
        if len(_distinct(results, [*chosen, key])) > len(_distinct(results, chosen)) and len(chosen) < _MAX_PARTS:
            chosen.append(key)
    names = [", ".join(filter(None, (_part(run, key) for key in chosen))) for run in results]
    if any(run.seeds != results[0].seeds for run in results):
        changing = [name for name in results[0].seeds if len({run.seeds.get(name) for run in results}) > 1]
        seeds = [", ".join(f"{name} seed {run.seeds.get(name)}" for name in changing) for run in results]
        names = [", ".join(filter(None, pair)) for pair in zip(names, seeds, strict=True)]
    has_other_inputs = any(differing_inputs(results[0], run) for run in results[1:])
    if len(set(names)) < len(names) or (has_other_inputs and not chosen) or "" in names:
        names = [
            f"{name}, run {run.run}" if name else f"run {run.run}" for name, run in zip(names, results, strict=True)
        ]
    return names


def _distinct(results: Sequence[RunResult], keys: Sequence[str]) -> set[str]:
    return {repr([config_value(run.config, key) for key in keys]) for run in results}


def _part(run: RunResult, key: str) -> str:
    """Return one setting of a run as text."""
    value: Any = config_value(run.config, key)
    if isinstance(value, (list, tuple)):
        value = "+".join(map(str, value))
    if key in _BARE and value is not None:
        return PurePath(str(value)).name if key.endswith(".path") else str(value)
    return f"{key.rpartition('.')[2]}={'none' if value is None else value}"
