"""What a W&B run holds besides curves: environment, scores, and its artifacts with their inputs.

Files stay where they are: artifacts refer to them, so that a large store is never sent.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    MEMBERS,
    RESULT_FILE,
    SHARDS,
    STORE,
    RunResult,
    describe_environment,
    write_result,
)
from diffprobe.features.writer import MANIFEST
from diffprobe.metrics.headline import headline, place_of

if TYPE_CHECKING:
    from wandb import Run

SCORE = "score/"
"""Prefix of the summary keys with one value per metric: on test, where val is best."""
SENT_RESULT = f"diffprobe-{RESULT_FILE}"
"""Name of a run's record among the files of its W&B run. They are below the run's folder, where a `result.json` would
be found as a second result."""
VAL_SCORE = "val_score/"
"""Prefix of the summary keys with the value on val that chose the score: what a sweep may optimise."""
_SLURM = (
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION",
    "SLURM_RESTART_COUNT", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS",
)  # fmt: skip
_TYPES = {STORE: "features", SHARDS: "dataset", BACKBONE: "model"}
"""Input of a run -> type of its artifact."""


def environment(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what the configuration of a W&B run holds besides the settings: commit, versions, machine, SLURM's ids."""
    known = os.environ if environ is None else environ
    slurm = {name.removeprefix("SLURM_").lower(): known[name] for name in _SLURM if known.get(name)}
    return {"environment": {**describe_environment(), **({"slurm": slurm} if slurm else {})}}


def scores(result: RunResult) -> dict[str, float]:
    """Return one value per metric of a result: that on test of the cell, target and probe that are best on val."""
    found = {}
    for name in dict.fromkeys(record.name for record in result.metrics):
        record = headline(result, name)
        if record is not None:
            found[SCORE + name] = record.value
    return found


def val_scores(result: RunResult) -> dict[str, float]:
    """Return one value per metric of a result that was measured on val: the best one there, which chose the score."""
    found = {}
    for name in dict.fromkeys(record.name for record in result.metrics if record.split == "val"):
        chosen = headline(result, name)
        for record in result.metrics:
            at_place = chosen is not None and place_of(record) == place_of(chosen)
            if record.name == name and record.split == "val" and at_place:
                found[VAL_SCORE + name] = record.value
    return found


def save_results(run: "Run", result: RunResult, members: Mapping[str, RunResult]) -> None:
    """Put the record of a run, and those of its members, into the files of its W&B run (`SENT_RESULT`,
    `members/NAME/` with that name). They are copies, since the folder of the W&B run may be sent from another machine.
    """
    root = Path(run.dir)
    for name, one in (("", result), *members.items()):
        path = root / MEMBERS / name / SENT_RESULT if name else root / SENT_RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(one, path)
        run.save(glob.escape(str(path)), base_path=str(root), policy="now")


def log_artifacts(run: "Run", result: RunResult, run_dir: Path) -> None:
    """Log the written probes as an artifact, with the digests of all inputs, and name the inputs as used.

    W&B records used artifacts online only; offline the digests are in the metadata of the probe's artifact.
    """
    import wandb

    inputs = {name: digest for name, digest in result.artifacts.items() if name.startswith(INPUT)}
    if not run.offline:
        for name, kind in _TYPES.items():
            if name in inputs:
                used = wandb.Artifact(f"{kind}-{inputs[name][:12]}", kind, metadata={"sha256": inputs[name]})
                if name == STORE and (manifest := _manifest_of(result, inputs[name])) is not None:
                    used.add_reference(manifest.as_uri(), name=manifest.name, checksum=False)
                run.use_artifact(used)
    written = {name: digest for name, digest in result.artifacts.items() if not name.startswith(INPUT)}
    if not written:
        return
    made = wandb.Artifact(
        _probe_name(result),
        result.kind,
        metadata={"inputs": inputs, "config_digest": result.config_digest, "files": written},
    )
    for name in written:
        folder = (run_dir / name).resolve()
        if folder.exists():
            made.add_reference(folder.as_uri(), name=name, checksum=False)
    run.log_artifact(made)


def log_page(run: "Run", page: Path, results: Sequence[RunResult]) -> None:
    """Log the page of some runs as an artifact that follows from their probes.

    W&B records used artifacts online only; offline the names of the probes are in the metadata of the page's artifact.

    Raises: what W&B raises where a probe is not in the project of `run`.
    """
    import wandb

    of_probes = [result for result in results if any(not name.startswith(INPUT) for name in result.artifacts)]
    if not run.offline:
        for result in of_probes:
            run.use_artifact(f"{_probe_name(result)}:latest", type=result.kind)
    made = wandb.Artifact(f"report-{page.stem}", "report", metadata={"probes": [_probe_name(one) for one in of_probes]})
    made.add_file(str(page), name=page.name)
    run.log_artifact(made)


def _probe_name(result: RunResult) -> str:
    """Return the name of the artifact of a run's probes."""
    return f"{result.kind}-{result.run.replace('/', '-')}"


def _manifest_of(result: RunResult, digest: str) -> Path | None:
    """Return the manifest of the store that a run read, None where it is not at hand."""
    features = result.config.get("features")
    root = features.get("store") if isinstance(features, Mapping) else None
    path = Path(root, digest[:16], MANIFEST).resolve() if isinstance(root, str) else None
    return path if path is not None and path.is_file() else None
