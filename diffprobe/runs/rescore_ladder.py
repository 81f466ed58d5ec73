"""`diffprobe rescore --ladder`: what a run gains over each rung of its ladder of controls, over the same samples.

The rungs are found beside the run: runs of the same experiment and output folder that are a control of it, with its
seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffprobe.config.controls import ALL_RUNGS, LADDER
from diffprobe.core.errors import RunFailed
from diffprobe.core.progress import Bar
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result
from diffprobe.report.aggregation import control_of
from diffprobe.report.collect import read_results
from diffprobe.report.query import config_value
from diffprobe.report.table_data import differences_from_control
from diffprobe.runs.rescore import Bootstrap, ScoredRun, compare, load_run

_SEEDS = ("seed", "features.seed", "backbone.random_seed")
"""Seeds in which a rung equals its run."""


def rungs_of(path: Path | str) -> dict[str, Path]:
    """Find the rungs of a run: control -> folder of its run, in the order of the ladder; those that are there.

    Args:
        path: folder of the run, or its `result.json`.

    Raises: RunFailed for a run that is a control itself, without any rung beside it, or with two runs of one rung that
        differ in nothing that is compared; SchemaError for a result file beside it that cannot be read.
    """
    path = Path(path)
    folder = path.parent if path.name == RESULT_FILE else path
    run = read_result(folder / RESULT_FILE)
    if control_of(run) is not None:
        raise RunFailed(
            f"run '{run.run}' is a control itself ({control_of(run)}), so it has no ladder.",
            fix="name the run that it is a control of",
        )
    paths = sorted(folder.resolve().parent.glob(f"*/{RESULT_FILE}"))
    found: dict[str, list[tuple[Path, bool]]] = {}
    for beside, result in zip(paths, read_results(paths), strict=True):
        control = control_of(result)
        if control in LADDER and _is_rung(str(control), run, result):
            found.setdefault(str(control), []).append((beside.parent, _twin(run) == _twin(result)))
    if not found:
        raise RunFailed(
            f"no rung of the ladder of run '{run.run}' is in '{folder.parent}'.",
            f"a rung: {', '.join(LADDER)}, with the settings and seeds of the run",
            fix=f"diffprobe train experiment={run.experiment or 'NAME'} control={ALL_RUNGS}, with the run's settings",
        )
    chosen: dict[str, Path] = {}
    for control in (name for name in LADDER if name in found):
        twins = [folder for folder, is_twin in found[control] if is_twin]
        folders = twins or [folder for folder, _ in found[control]]
        if len(folders) > 1:
            raise RunFailed(
                f"run '{run.run}' has {len(folders)} rungs {control}.",
                *map(str, folders[:20]),
                fix="name one of them: --against RUN",
            )
        chosen[control] = folders[0]
    return chosen


def _twin(run: RunResult) -> dict[str, Any]:
    """Return what a run and the rung that `control=ladder` made of it have in common: all settings but the control."""
    return {key: value for key, value in run.config.items() if key != "control"}


def _is_rung(control: str, run: RunResult, other: RunResult) -> bool:
    same = all(config_value(run.config, key) == config_value(other.config, key) for key in _SEEDS)
    return same and run.kind == other.kind and not differences_from_control(control, run, other)


def compare_ladder(
    one: ScoredRun,
    rungs: Mapping[str, Path],
    *,
    metrics: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Callable[[int], AbstractContextManager[Bar | None]] | None = None,
) -> list[MetricRecord]:
    """Compute the paired differences of a run from each rung, one minus the rung, over the same samples.

    Args:
        one: the run.
        rungs: control -> folder, see `rungs_of`.
        metrics, where, bootstrap, progress: see `rescore.compare`; heads are chosen of the run.

    Returns: the records of `rescore.compare`, rung after rung; `detail["against"]` names the rung.
    Raises: as `rescore.compare`.
    """
    made: list[MetricRecord] = []
    for control, folder in rungs.items():
        other = load_run(folder, one.predictions.split)
        for record in compare(one, other, metrics=metrics, where=where, bootstrap=bootstrap, progress=progress):
            head = {name: value for name, value in record.detail["against"].items() if name != "control"}
            against = {"rung": control, **head}
            made.append(replace(record, detail={**record.detail, "against": against}))
    return made
