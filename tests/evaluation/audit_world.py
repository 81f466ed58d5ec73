"""An audit of the synthetic world on disk, for tests of what reads and shows it."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffprobe.analysis.audit.spec import Axis, Subject
from diffprobe.core.result import RunResult, StartTime, make_result
from diffprobe.evaluation.audit_inputs import write_arrays
from diffprobe.evaluation.audit_measures import measure_cell
from diffprobe.evaluation.audit_records import notes_of, records_of
from diffprobe.evaluation.audit_settings import Audit
from tests.analysis.audit.world import World

RATES = {"cook": 0.9, "judge": 0.1, "poet": 0.5, "pilot": 0.5, "miner": 0.75, "actor": 0.25}
TEXTURE = Axis(name="texture", positive=("striped",), negative=("plain",))
TONE = Axis(name="tone", positive=("dark",), negative=("light",), context="{prompt}, {attribute} tone")


def settings(n_templates: int = 20, **more: Any) -> Audit:
    tree: dict[str, Any] = {
        "experiment": "audits/test", "cells": ("mid@t1",), "axes": (TEXTURE,), "descriptors": ("red", "blue", "old"),
        "templates": tuple(f"view {i} of a {{subject}}" for i in range(n_templates)),
        "subjects": tuple(Subject(name=name, group="arts" if name in ("poet", "actor") else None) for name in RATES),
        "n_resamples": 60, "n_permutations": 99, "max_clusters": 3, **more,
    }  # fmt: skip
    return Audit(**tree)


def write_store(folder: Path, config: Audit, **world: Any) -> Path:
    """Write latents of all cells of an audit; those of later cells are noisier."""
    cells = {}
    for number, cell in enumerate(config.cells):
        latents = World(RATES, **{"n_seeds": 6, "noise": 1.0 + number, **world}).latents(config)
        cells[cell] = latents.features
    write_arrays(folder, latents.prompts, cells)
    return folder


@cache
def example(**more: Any) -> RunResult:
    """Return the result of an audit that is not written, with times and versions that do not change."""
    config = settings(**more)
    measures = measure_cell(config, World(RATES, n_seeds=6).latents(config), words=None, images=None, reference=None)
    records = records_of(config, measures, (), notes_of(config, measures))
    return make_result(
        run="audits/test/0", experiment="audits/test", kind="audit", config=_plain(config), seeds={}, metrics=records,
        started_at=StartTime(0.0, 0.0),
    )  # fmt: skip


def _plain(config: Audit) -> dict[str, Any]:
    from diffprobe.config.parse import record_tree

    tree: dict[str, Any] = record_tree(config)
    return tree


def rates_csv(path: Path, rates: dict[str, float], spread: float = 0.05) -> Path:
    lines = [f"{name},{rate},{max(0, rate - spread)},{min(1, rate + spread)}" for name, rate in rates.items()]
    path.write_text("\n".join(["subject,rate,low,high", *lines]) + "\n")
    return path


def shuffled(rates: dict[str, float]) -> dict[str, float]:
    names = list(rates)
    return dict(zip(names, np.roll(list(rates.values()), 1).tolist(), strict=True))
