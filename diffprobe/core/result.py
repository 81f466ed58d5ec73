"""The result record of a run, `result.json`: its fields, writing and reading. Tables read nothing else.

Needs no torch, so that tables and pages can be created on any machine.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from diffprobe import __version__
from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import SchemaError, nearest

SCHEMA_VERSION = 2
KIND = "result"
RESULT_FILE = "result.json"
"""File name of the record in a run's folder."""
INPUT = "input/"
"""Prefix of the names of a run's inputs in `artifacts`; all other names are files that the run wrote."""
SHARDS, BACKBONE, STORE = f"{INPUT}shards", f"{INPUT}backbone", f"{INPUT}store"
"""Names of a run's inputs in `artifacts`."""
_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "torchmetrics", "webdataset", "numpy")


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One measured number, with its data and its controls."""

    name: str
    """The metric: "accuracy", "fvu", "auroc", "l0", "dead_fraction", "psnr_db", ..."""
    value: float
    """The number, finite."""
    split: str
    """The split: "train", "val" or "test"."""
    n: int
    """Number of samples."""
    cell: str | None = None
    """The cell of the features, for example "mid_block@t100:empty:mean"."""
    target: str | None = None
    """The target: "label" or the name of an attribute."""
    probe: str | None = None
    """The name of the probe: "linear", "topk", "mean_difference", "ridge", "logistic"."""
    controls: dict[str, float] = field(default_factory=dict)
    """Control name ("random_weights", "shuffled_labels", "raw_pixels", "chance", "random_direction") -> its value."""
    spread: float | None = None
    """Standard deviation over seeds; None for one seed."""
    n_seeds: int = 1
    """Number of seeds of value and spread."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Further JSON values, for example the captions at both ends of a direction."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All facts about one run that tables and pages can use."""

    run: str
    """Name of the run, unique in its folder."""
    experiment: str
    """Experiment file without suffix, for example "emoji/classifier"; empty if the run had none."""
    kind: str
    """The kind of run: "sae", "classifier", "direction", "extract", "backbone_eval", "train_denoiser", ..."""
    config: dict[str, Any]
    """The resolved configuration."""
    config_digest: str
    """sha256 of the canonical JSON of `config`."""
    git_commit: str | None
    """Commit of the code, with "+dirty" if files differ from it; None outside a checkout."""
    versions: dict[str, str]
    """Package -> version, for python and the packages that affect numbers."""
    seeds: dict[str, int]
    """Name -> seed, for all seeds of the run."""
    hardware: dict[str, Any]
    """Machine type, cores, threads, accelerators; no host name."""
    started: str
    """Start in UTC, ISO 8601."""
    wall_time_s: float
    """Seconds from the start to the creation of this record."""
    metrics: tuple[MetricRecord, ...]
    """The measured numbers."""
    artifacts: dict[str, str]
    """Name -> sha256 of the run's outputs and inputs."""
    wandb_run_id: str | None
    """Id of the W&B run; None without W&B."""
    schema_version: int = SCHEMA_VERSION
    """Version of this record's layout."""


class StartTime(float):
    """The time of a start: `time.time()` as a float, with the reading of a clock that nobody sets beside it.

    >>> StartTime.now().elapsed() < 1
    True
    """

    _monotonic: float

    @classmethod
    def now(cls) -> "StartTime":
        """Read both clocks."""
        found = cls(time.time())
        found._monotonic = time.monotonic()
        return found

    def elapsed(self) -> float:
        """Return the seconds since the start, by the monotonic clock."""
        return time.monotonic() - self._monotonic


def make_result(
    *,
    run: str,
    experiment: str,
    kind: str,
    config: Mapping[str, Any],
    seeds: Mapping[str, int],
    metrics: Iterable[MetricRecord],
    started_at: "StartTime | float",
    artifacts: Mapping[str, str] | None = None,
    wandb_run_id: str | None = None,
) -> RunResult:
    """Return the record of a run that ends now, with digest, commit, versions, hardware and wall time.

    Args:
        started_at: `StartTime.now()` at the start of the run; `time.time()` of a start in another process, whose wall
            time is then wrong where the clock was set in between.
    """
    plain = json.loads(canonical_json(dict(config)))  # tuples become lists, as after reading
    return RunResult(
        run=run,
        experiment=experiment,
        kind=kind,
        config=plain,
        config_digest=digest_json(plain),
        git_commit=_git_commit(),
        versions=_versions(),
        seeds=dict(seeds),
        hardware=_hardware(),
        started=datetime.fromtimestamp(started_at, UTC).isoformat(timespec="seconds"),
        wall_time_s=round(_elapsed(started_at), 3),
        metrics=tuple(metrics),
        artifacts=dict(artifacts or {}),
        wandb_run_id=wandb_run_id,
    )


def write_result(result: RunResult, path: Path | str) -> None:
    """Write `result` atomically as canonical JSON. Raises: NonFinite on NaN or infinity, before anything is written."""
    body = dataclasses.asdict(result)
    write_artifact(path, body, kind=KIND, schema_version=SCHEMA_VERSION, inputs=result.artifacts)


def read_result(path: Path | str) -> RunResult:
    """Read a record. Raises: SchemaError, with the file, for another kind or version, or an invalid file."""
    tree = read_json(path, kind=KIND, schema_version=SCHEMA_VERSION, remake=_remake)
    del tree[HEADER]
    if not isinstance(tree.get("metrics"), list):
        raise SchemaError(f"'{path}' has no list 'metrics'.")
    metrics = tuple(_build(MetricRecord, entry, f"{path}, metrics[{i}]") for i, entry in enumerate(tree["metrics"]))
    result: RunResult = _build(RunResult, {**tree, "metrics": metrics}, str(path))
    return result


def _remake(old: dict[str, Any]) -> str:
    """Return the command that repeats the run of a result of an older version."""
    name = old.get("experiment")
    what = f"experiment={name}" if isinstance(name, str) and name else "with the settings in its `config`"
    return f"run it again: diffprobe train {what}, then remove the old file"


def _build(cls: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, dict):
        raise SchemaError(f"{where}: expected an object, found {type(tree).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(tree) - set(fields))
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [n for n, f in fields.items() if n not in tree and (f.default, f.default_factory) == optional]
    if unknown or missing:
        lines = [f"unknown key '{key}', nearest: {', '.join(nearest(key, fields)) or '(none)'}" for key in unknown]
        lines += [f"missing key '{key}'" for key in missing]
        raise SchemaError(f"'{where}' is not a {cls.__name__} of this version.", *lines)
    if cls is MetricRecord and not _is_number(tree["value"]):
        raise SchemaError(f"'{where}': value is {tree['value']!r}, expected a number.")
    return cls(**tree)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _elapsed(started_at: StartTime | float) -> float:
    return started_at.elapsed() if isinstance(started_at, StartTime) else time.time() - started_at


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "diffprobe": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed, so it cannot have affected a number
    return versions


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")  # looked up, not imported: tables need no torch
    if torch is not None:
        hardware["threads"] = torch.get_num_threads()
        count = torch.cuda.device_count()
        hardware["accelerators"] = [torch.cuda.get_device_name(i) for i in range(count)]
    return hardware


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed from a wheel: the commit would be that of the user's own repository
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + "+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
