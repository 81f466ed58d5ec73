"""Finished probe runs on disk: of single runs, of grids, and of all runs below folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.registry import PROBE_KINDS
from diffprobe.core.result import MEMBERS, RESULT_FILE, RunResult
from diffprobe.report.collect import read_results
from diffprobe.report.table_data import differences_from_control
from diffprobe.report.table_request import result_paths

_STARTED = ("inputs.json", "last.ckpt")
"""Files of a run that has begun; without a result it failed, or is not finished."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """A finished run of a probe."""

    config: RunConfig
    """Its configuration."""
    result: RunResult
    """Its result."""
    folder: Path
    """Its folder."""

    @property
    def control(self) -> str:
        """The control that it measures, "none" for an ordinary run."""
        return self.config.control

    def is_control_of(self, run: "ProbeRun") -> bool:
        """Return whether it measures a control of another run: same probe, data and settings but for the control."""
        same_kind = self.result.kind == run.result.kind and self.control != "none"
        return same_kind and not differences_from_control(self.control, run.result, self.result)


@dataclass(frozen=True, kw_only=True)
class FoundRuns:
    """What some paths contain."""

    runs: tuple[ProbeRun, ...]
    """The runs of probes, in order."""
    others: tuple[RunResult, ...]
    """Results of other kinds: evaluations of backbones, training of denoisers."""
    unfinished: tuple[Path, ...]
    """Folders of runs below the paths that have begun and have no result."""


def open_probe_runs(paths: Sequence[str | Path]) -> FoundRuns:
    """Read the results of runs, of grids (their members), and of all runs below folders.

    Args:
        paths: folders or `result.json` files.
    Raises: ConfigError for what is neither; RunFailed for a run without a result; SchemaError for results that cannot
        be read.
    """
    unfinished: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            begun = sorted(folder for name in _STARTED for folder in _folders_with(path, name))
            without = [folder for folder in dict.fromkeys(begun) if not (folder / RESULT_FILE).is_file()]
            if path in without:
                raise RunFailed(
                    f"the run '{path}' has no {RESULT_FILE}: it failed, or is not finished.",
                    fix="run its command again, it continues from its last checkpoint; or leave it out",
                )
            unfinished += without
    runs, others = [], []
    found = result_paths(paths)
    for path, result in zip(found, read_results(found), strict=True):
        if result.kind not in PROBE_KINDS.names():
            others.append(result)
        elif result.metrics or not any(name.startswith(f"{MEMBERS}/") for name in result.artifacts):
            config = parse(RunConfig, result.config, at=f"{path}: config")
            runs.append(ProbeRun(config=config, result=result, folder=path.parent))
    if not runs:
        kinds = ", ".join(sorted({result.kind for result in others})) or "grids without members"
        raise RunFailed(
            f"no run of a probe is among {len(found)} result(s) ({kinds}).",
            f"shown are: {', '.join(PROBE_KINDS.names())}",
        )
    return FoundRuns(runs=tuple(runs), others=tuple(others), unfinished=tuple(dict.fromkeys(unfinished)))


def _folders_with(root: Path, name: str) -> list[Path]:
    return [path.parent for path in root.rglob(name)]


def reason(error: DiffprobeError | OSError) -> str:
    """Return why something is not at hand, in one sentence."""
    text = error.what if isinstance(error, DiffprobeError) else str(error)
    return f"{text.rstrip('.')}."
