"""The result record of a run, `result.json`: its fields, writing and reading. Tables read nothing else.

Needs no torch, so that tables and pages can be created on any machine.
"""

import dataclasses
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from diffprobe import __version__
from diffprobe.core.artifact import HEADER, read_json, write_artifact
from diffprobe.core.digest import canonical_json, digest_json
from diffprobe.core.errors import SchemaError, nearest

SCHEMA_VERSION = 2
KIND = "result"
RESULT_FILE = "result.json"
"""File name of the record in a run's folder."""
MEMBERS = "members"
"""Folder below that of a run, with one folder per member of its grid."""
INPUT = "input/"
"""Prefix of the names of a run's inputs in `artifacts`; all other names are files that the run wrote."""
SHARDS, BACKBONE, STORE = f"{INPUT}shards", f"{INPUT}backbone", f"{INPUT}store"
"""Names of a run's inputs in `artifacts`."""
_PREDICTIONS = "predictions-"
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
    """The name of the probe: "linear", "topk", "mean_difference", "ridge", "logistic"; of runs of kind "use" and
    "generations", the name of the intervention."""
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


@dataclass(frozen=True)
class StartTime:
    """The time of a start, by two clocks.

    >>> StartTime.now().elapsed() < 1
    True
    """

    wall: float
    """`time.time()`, for the date; it jumps when the clock is set."""
    monotonic: float
    """`time.monotonic()`, for durations."""

    @classmethod
    def now(cls) -> "StartTime":
        """Read both clocks."""
        return cls(time.time(), time.monotonic())

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.monotonic


def predictions_file(split: str) -> str:
    """Return the name of the file beside a result that has the predictions of a split.

    >>> predictions_file("test")
    'predictions-test.safetensors'
    """
    return f"{_PREDICTIONS}{split}.safetensors"


def is_predictions(artifact: str) -> bool:
    """Return whether a name in `artifacts` is a file of predictions; other outputs are folders of probes."""
    return artifact.rpartition("/")[2].startswith(_PREDICTIONS)


def make_result(
    *,
    run: str,
    experiment: str,
    kind: str,
    config: Mapping[str, Any],
    seeds: Mapping[str, int],
    metrics: Iterable[MetricRecord],
    started_at: StartTime,
    artifacts: Mapping[str, str] | None = None,
    wandb_run_id: str | None = None,
) -> RunResult:
    """Return the record of a run that ends now, with digest, commit, versions, hardware and wall time.

    Args:
        started_at: `StartTime.now()` at the start of the run.
    """
    plain = json.loads(canonical_json(dict(config)))  # tuples become lists, as after reading
    return RunResult(
        run=run,
        experiment=experiment,
        kind=kind,
        config=plain,
        config_digest=digest_json(plain),
        seeds=dict(seeds),
        **describe_environment(),
        started=datetime.fromtimestamp(started_at.wall, UTC).isoformat(timespec="seconds"),
        wall_time_s=round(started_at.elapsed(), 3),
        metrics=tuple(metrics),
        artifacts=dict(artifacts or {}),
        wandb_run_id=wandb_run_id,
    )


def describe_environment() -> dict[str, Any]:
    """Return `git_commit`, `versions` and `hardware` as a result records them."""
    return {"git_commit": _git_commit(), "versions": _versions(), "hardware": _hardware()}


def write_result(result: RunResult, path: Path | str) -> None:
    """Write `result` atomically as canonical JSON. Raises: NonFinite on NaN or infinity, before anything is written."""
    body = dataclasses.asdict(result)
    write_artifact(path, body, kind=KIND, schema_version=SCHEMA_VERSION, inputs=result.artifacts)


def read_result(path: Path | str) -> RunResult:
    """Read a record: its digest is compared, and the type and range of every field are checked.

    Raises: SchemaError, with file and key, for another kind or version, a modified file, or an invalid field.
    """
    tree = read_json(path, kind=KIND, schema_version=SCHEMA_VERSION, remake=_remake)
    inputs = tree.pop(HEADER).get("inputs")
    if not isinstance(tree.get("metrics"), list):
        raise SchemaError(f"'{path}' has no list 'metrics'.")
    metrics = tuple(_build(MetricRecord, entry, f"{path}, metrics[{i}]") for i, entry in enumerate(tree["metrics"]))
    result: RunResult = _build(RunResult, {**tree, "metrics": metrics}, str(path))
    for name, found, expected in (
        ("config_digest", result.config_digest, digest_json(result.config)),
        ("artifacts", result.artifacts, inputs),
        ("schema_version", result.schema_version, SCHEMA_VERSION),
    ):
        if found != expected:
            raise SchemaError(f"'{path}': '{name}' does not match the rest of the file.", fix=_remake(tree))
    return result


def _remake(old: dict[str, Any]) -> str:
    """Return the command that repeats the run of a result that cannot be read."""
    name = old.get("experiment")
    what = shlex.quote(f"experiment={name}") if isinstance(name, str) and name else "with the settings in its `config`"
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
    hints = _hints(cls)
    values = {key: _typed(value, hints[key], where, key) for key, value in tree.items()}
    for key, (allows, allowed) in _RANGES.items():
        if values.get(key) is not None and not allows(values[key]):
            raise SchemaError(f"'{where}': {key} is {_short(values[key])}, expected {allowed}.")
    for key, hint in _DETAILS.items() if cls is MetricRecord else ():
        if key in values.get("detail", ()):
            values["detail"][key] = _typed(values["detail"][key], hint, where, "detail", key)
    return cls(**values)


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (bool, "a name"),
    "split": (bool, "a name"),
    "run": (bool, "a name"),
    "n": (lambda n: n >= 0, "a number of samples"),
    "n_seeds": (lambda n: n >= 1, "at least 1"),
    "spread": (lambda spread: spread >= 0, "at least 0"),
    "wall_time_s": (lambda seconds: seconds >= 0, "at least 0"),
    "detail": (lambda detail: _is_interval(detail.get("interval")), "an interval of two ascending numbers, or none"),
}
"""Key -> test of its value, and what is allowed."""
_DETAILS: dict[str, Any] = {
    "interval": tuple[float, ...] | None, "control_spread": dict[str, float], "n_classes_held": int, "n_latents": int,
    "no_recovered": str, "label_injection": str,
}  # fmt: skip
"""Details that tables, pages and the terminal use -> type."""
_LARGEST = 2**63
"""Bound of integers: counts and seeds fit into 64 bits."""


def _is_interval(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else -_LARGEST <= value < _LARGEST


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _typed(value: Any, hint: Any, where: str, *keys: str | int) -> Any:
    """Return a JSON value as its field has it. Raises: SchemaError, naming the place, for another type."""
    if hint is str and isinstance(value, str):  # most values
        return value
    if hint is float and _is_number(value):
        return float(value)
    if hint is int and _is_number(value) and isinstance(value, int):
        return value
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(value, args[0], where, *keys)
    if hint is Any or (origin is dict and args[1] is Any and isinstance(value, dict)):
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, args[1], where, *keys, key) for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        items = [item if args[0] is MetricRecord else _typed(item, args[0], where, *keys) for item in value]
        return items if isinstance(value, list) else tuple(items)
    raise SchemaError(
        f"'{where}': {'.'.join(map(str, keys))} is {_short(value)}, expected {_EXPECTED.get(origin or hint, hint)}."
    )


_EXPECTED: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a number", dict: "an object", tuple: "a list",
}  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
