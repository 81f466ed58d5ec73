"""`diffprobe notebook`: a Jupyter notebook that opens finished runs, to look further from there.

The file is plain JSON (nbformat 4.5), without outputs; Jupyter, VS Code or `jupyter execute` run it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.evaluation.probe_runs import ProbeRun, open_probe_runs

MAX_RUNS = 12
"""Runs that get cells of their own; the table has all of them."""


def write_notebook(paths: Sequence[str | Path], out: Path | str) -> tuple[Path, ...]:
    """Write a notebook that opens some runs.

    Args:
        paths: folders of runs, folders below which runs are, or `result.json` files.
        out: the notebook; an existing file is not replaced, since it may have been edited.
    Returns: folders of the runs that are in the table only: controls, and runs beyond the first `MAX_RUNS`.
    Raises: ConfigError for another ending, for a file that exists, and for paths that are not of runs; RunFailed for
        runs without a result, or controls alone; SchemaError for results that cannot be read.
    """
    path = Path(out)
    if path.suffix != ".ipynb":
        raise ConfigError(f"'{out}' has no ending of a notebook.", "allowed: .ipynb", fix=f"--out {out}.ipynb")
    if path.exists():
        raise ConfigError(f"'{out}' exists and is not replaced.", fix="another FILE, or move it away")
    runs = open_probe_runs(paths).runs
    ordinary = [run for run in runs if run.control == "none"]
    if not ordinary:
        raise RunFailed(
            f"all {len(runs)} runs are controls; a notebook shows what they are controls of.", fix="name the run too"
        )
    shown = ordinary[:MAX_RUNS]
    text = json.dumps(_notebook(_cells(paths, shown, path.parent)), indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return tuple(run.folder for run in runs if run not in shown)


def _cells(paths: Sequence[str | Path], runs: Sequence[ProbeRun], folder: Path) -> list[tuple[str, str]]:
    """Return (kind, source) of each cell."""
    names = [str(path) for path in paths]
    start = ["%matplotlib inline"]
    away = os.path.relpath(Path.cwd(), folder.resolve())
    if away != os.curdir:  # runs name shards and stores as seen from the folder in which the command was given
        start += ["import os", "", f"os.chdir({away!r})"]
    start += ["from diffprobe import build_table, open_run"]
    cells = [
        ("markdown", f"# Runs of {', '.join(f'`{name}`' for name in names)}"),
        ("code", "\n".join(start)),
        ("markdown", "All of them, on the test split, with the controls that were measured:"),
        ("code", f"build_table({names!r})"),
    ]
    for number, run in enumerate(runs, 1):
        variable = "run" if len(runs) == 1 else f"run_{number}"
        cells.append(("markdown", f"## {run.config.probe.name} ({run.result.kind}), run {run.result.run}"))
        cells.append(("code", f"{variable} = open_run({str(run.folder)!r})\n{variable}"))
        cells += [("code", source) for source in _views(run, variable)]
    further = "Further: `run.probe(...)`, `run.features()`, `run.table(where=...)`; figures are matplotlib's."
    cells.append(("markdown", further))
    return cells


def _views(run: ProbeRun, variable: str) -> list[str]:
    """Return the code that shows a run, by its kind."""
    if run.result.kind == "sae":
        return [f"{variable}.latent_grid()", f"{variable}.probe()"]
    if run.result.kind == "direction":
        return [f"{variable}.table()"]
    targets = list(dict.fromkeys(record.target for record in run.result.metrics if record.target))
    return [f"{variable}.heat_map({f'target={target!r}' if len(targets) > 1 else ''})" for target in targets]


def _notebook(cells: Sequence[tuple[str, str]]) -> dict[str, object]:
    empty: dict[str, dict[str, object]] = {"code": {"execution_count": None, "outputs": []}, "markdown": {}}
    return {
        "cells": [
            {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": {}, "source": source, **empty[kind]}
            for number, (kind, source) in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
